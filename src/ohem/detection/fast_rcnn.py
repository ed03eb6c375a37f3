"""Fast R-CNN (Girshick, 2015), the detector of the paper, trained with any `RoISampler`.

Shapes: R: RoIs of the mini-batch   B: RoIs trained on   N: images   P: proposals of an image   K: foreground classes
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ohem.checks import (
    check_callable,
    check_choice,
    check_integer,
    check_optional,
    check_sequence,
    check_type,
)
from ohem.detection.backbones import Backbone
from ohem.detection.box_refinement import BoxRefinement
from ohem.detection.detector import Detector
from ohem.detection.foreground import ForegroundNetwork, foreground_dim, foreground_head
from ohem.detection.multiscale import Merge, View, union
from ohem.detection.post_process import BoxScores, PostProcess
from ohem.detection.regions import Region, Regions
from ohem.detection.roi_networks import RoINetworks
from ohem.detection.shortlist import Shortlist
from ohem.detection.windows import grouped, own_cells, sizes_of, windows_of
from ohem.kernels.fast_linear import fast_linear
from ohem.kernels.low_precision import is_exact, low_precision
from ohem.losses import detection_loss, roi_losses, weighted
from ohem.mining import hard_examples
from ohem.read_only import read_only
from ohem.rois import BOX_MEAN, BOX_STD, RoIs, background_rois, check_normalisation, joined, match
from ohem.samplers import Losses, RoISampler
from ohem.samplers.base import by_image, check_sampler
from ohem.targets import read_targets

# Number of RoIs whose features (VGG16: 4096 numbers) are in memory at once, until the output layers have read them.
AT_ONCE = 8192


class FastRCNN(Detector):
    """Convolutional network and RoI network on given proposals.

    In train mode `model(images, proposals, targets)` returns `{"loss_classifier": ..., "loss_box_reg": ...}`. In eval
    mode `model(images, proposals)` returns `{"boxes": (D, 4), "labels": (D,), "scores": (D,)}` for each image. `detect`
    does so for one image in several sizes.

    Args:
        backbone: convolutional network, and RoI network up to its two output layers.
        num_classes: K + 1, background counted.
        sampler: chooses the RoIs to train on.
        implementation: how a sampler gets the losses. "read_only": by a forward pass without gradient over all RoIs,
            followed by the regular RoI network on the chosen ones; "loss_layer": by one pass with gradient over all
            RoIs, in which the losses of the others are set to 0 (paper, section 4.2: equal gradients, more time).
        rescore_top: 0 ranks every RoI in the precision of the network. A higher number ranks all RoIs in low precision,
            and then this number of the hardest of each image in full precision. On a CPU the fastest precision is
            measured once (int8, bfloat16, or none: then every RoI is ranked in full); a GPU has float8 or bfloat16.
        regions: regions of a RoI that are pooled, each for a copy of the RoI network, whose features are concatenated
            (MR-CNN: `Regions()`); None: the RoI alone.
        shortlist: 0 ranks every RoI at each visit of an image. A higher number ranks, from the second visit on, this
            number of the hardest RoIs by the losses of the last visit, and an eighth of the others. Targets then need
            an `image_id`.
        post_process: makes detections from scores and regressions.
        refinement: iterative box regression with voting (the paper's B); None switches both off.
        merge: how `detect` merges several sizes (the paper's M): `multiscale.union` or `multiscale.nearest`.
        probabilities: computes the scores of detections from the outputs (P, K + 1) of the layer `scores`; None:
            softmax, which fits a layer that is trained with `detection_loss`.
        box_mean, box_std: normalisation of the regression targets, (4,) or per class (K + 1, 4).
    """

    box_mean: Tensor
    box_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        sampler: RoISampler,
        *,
        implementation: Literal["read_only", "loss_layer"] = "read_only",
        regions: Regions | None = None,
        rescore_top: int = 0,
        shortlist: int = 0,
        post_process: PostProcess | None = None,
        refinement: BoxRefinement | None = None,
        merge: Merge = union,
        probabilities: Callable[[Tensor], Tensor] | None = None,
        box_mean: Tensor | Sequence[float] = BOX_MEAN,
        box_std: Tensor | Sequence[float] = BOX_STD,
    ) -> None:
        super().__init__()
        check_type("backbone", backbone, Backbone)
        check_integer("num_classes", num_classes, 2)
        check_sampler(sampler)
        check_choice("implementation", implementation, ("read_only", "loss_layer"))
        check_optional(check_type, "regions", regions, Regions)
        check_integer("rescore_top", rescore_top)
        check_integer("shortlist", shortlist)
        check_optional(check_type, "post_process", post_process, PostProcess)
        check_optional(check_type, "refinement", refinement, BoxRefinement)
        check_callable("merge", merge, "give ohem.detection.multiscale.union or nearest")
        check_optional(check_callable, "probabilities", probabilities, "give a function of scores (P, K + 1)")
        for name, values in (("box_mean", box_mean), ("box_std", box_std)):
            check_normalisation(name, values, num_classes)
        self.backbone = backbone
        self.num_classes = num_classes
        self.sampler = sampler
        self.implementation = implementation
        self.rescore_top = rescore_top
        self.shortlist = Shortlist(shortlist) if shortlist else None
        self.post_process = post_process or PostProcess()
        self.refinement = refinement
        self.merge = merge
        self.probabilities = probabilities or partial(torch.softmax, dim=1)
        self._reaches_out = regions is not None  # beyond the image, which no RoI does
        regions = regions or Regions((Region(),), None)
        self.regions = regions.all
        self.stacks = nn.ModuleList(copy.deepcopy(backbone.roi_head) for _ in self.regions[1:])
        """RoI networks of the regions after the first. They are copies, and a new one for foreground."""
        classified = backbone.dim * len(regions.classified)
        self.foreground = None if regions.foreground is None else ForegroundNetwork(backbone, num_classes - 1)
        self._foreground_number = len(regions.classified)
        if self.foreground is not None:
            self.stacks[self._foreground_number - 1] = foreground_head(backbone)
            classified += foreground_dim(backbone)
        self.scores = nn.Linear(classified, num_classes)
        self.deltas = nn.Linear(classified if regions.regressed is None else backbone.dim, 4 * num_classes)
        for layer, std in ((self.scores, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.register_buffer("box_mean", torch.as_tensor(box_mean).float().expand(num_classes, 4).clone())
        self.register_buffer("box_std", torch.as_tensor(box_std).float().expand(num_classes, 4).clone())

    def forward(
        self,
        images: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Returns losses in train mode and detections in eval mode.

        Args:
            images: N uint8 RGB (3, H, W), of any sizes.
            proposals: N float (P, 4), in pixels of these images.
            targets: N dicts as for `match`; required in train mode. Their `background` (H, 4), where given, are regions
                that are trained on besides the RoIs that the sampler chooses, such as the hard negatives of an earlier
                round; those that `match` does not label as background are left out.

        Raises:
            TypeError: an argument is of another type or dtype.
            ValueError: targets are missing in train mode, the numbers of images, proposals and targets differ, or a
                label or box is impossible. Values are checked on the CPU only.
        """
        check_sequence("images", images, "tensors (3, H, W), one per image")
        check_sequence("proposals", proposals, "tensors (P, 4), one per image")
        if len(proposals) != len(images):
            raise ValueError(f"proposals must be as many as the images, {len(images)}, not {len(proposals)}")
        if not self.training:
            features = self.feature_map(images)
            sizes = sizes_of(images)
            views = [[self._view(features[i : i + 1], 1.0)] for i in range(len(images))]
            return [self._detections(*inputs) for inputs in zip(views, proposals, sizes, strict=True)]
        if targets is None:
            raise ValueError("FastRCNN in train mode needs targets; call .eval() for detections")
        targets = read_targets(targets, len(images), num_classes=self.num_classes)
        rois = match(proposals, targets, mean=self.box_mean, std=self.box_std)  # first: a GPU has nothing to wait for
        features = self.feature_map(images)
        always = background_rois(targets)
        if self.implementation == "loss_layer":
            parts, trained = self._loss_layer(features, rois, always)
        else:
            rois, losses = self._to_rank(features, rois, targets)
            trained = joined(rois[self.sampler(rois, losses)], always)
            parts = detection_loss(*self.head(features, trained), trained)
        self.trained_on = len(trained)
        if self.foreground is not None:
            hidden = features[:, self.backbone.channels :]
            parts["loss_foreground"] = self.foreground.loss(hidden, targets, sizes_of(images), trained.images)
        return parts

    def _to_rank(self, features: Tensor, rois: RoIs, targets: Sequence[Mapping[str, Any]]) -> tuple[RoIs, Losses]:
        """Returns the RoIs to choose from, all of them or the shortlist, and their losses by the read-only pass."""
        if self.shortlist is None:
            return rois, partial(self.read_only_losses, features, rois)
        kept, remembered = self.shortlist(rois, targets)
        return rois[kept], remembered(partial(self.read_only_losses, features, rois[kept]))

    def detect(
        self, images: Sequence[Tensor], scales: Sequence[float], proposals: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Detects objects in one image that is given in several sizes; features are computed once for each size.

        Args:
            images: S uint8 RGB (3, h, w), the resized image.
            scales: S numbers, pixels of the resized image per pixel of the image.
            proposals: float (P, 4) in pixels of the image.
            size: (height, width) of the image.

        Returns:
            `boxes` (D, 4) in pixels of the image, `labels` (D,), `scores` (D,), highest score first.
        """
        views = [self._view(self.feature_map([image]), scale) for image, scale in zip(images, scales, strict=True)]
        return self._detections(views, proposals, size)

    def feature_map(self, images: Sequence[Tensor]) -> Tensor:
        """Computes the feature map (N, C, H', W') that RoIs of N images, uint8 (3, h, w) RGB, are pooled from."""
        self.backbone.least_size = self.least_size
        features: Tensor = self.backbone(images)
        if self.foreground is not None:  # more channels, which their region alone pools
            features = torch.cat([features, self.foreground(features)], dim=1)
        return own_cells(features, sizes_of(images), self.backbone.stride) if self._reaches_out else features

    def head(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Computes scores (R, K + 1) and normalised deltas (R, K + 1, 4) of `rois` on `features` (N, C, H, W)."""
        return self._outputs(self.roi_networks().features(features, rois))

    def read_only_losses(
        self, features: Tensor, rois: RoIs, cls_weight: float = 1.0, box_weight: float = 1.0
    ) -> Tensor:
        """Computes the loss (R,) of every RoI, classification + box regression, in the read-only pass."""
        if not self.rescore_top or is_exact(features.device) or features.dtype == torch.float64:
            return weighted(self.read_only_parts(features, rois), cls_weight, box_weight)
        with low_precision(nn.ModuleList(self.roi_networks().networks), features) as rounded:
            losses = weighted(self.read_only_parts(rounded, rois), cls_weight, box_weight)
        hardest = torch.cat([here[hard_examples(losses[here], self.rescore_top)] for here in by_image(rois)])
        losses[hardest] = weighted(self.read_only_parts(features, rois[hardest]), cls_weight, box_weight)
        return losses

    def read_only_parts(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Computes the two losses (R,) of `roi_losses` in the read-only pass."""
        with read_only(self):
            scores, deltas, which = self._distinct_outputs(features, rois)
            rows = torch.split(torch.arange(len(rois), device=which.device), AT_ONCE)
            parts = [roi_losses(scores[which[part]], deltas[which[part]], rois[part]) for part in rows]
        classifier, box_reg = (torch.cat(column) for column in zip(*parts, strict=True))
        return classifier, box_reg

    def distinct_features(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Computes the inputs of the two output layers, for any number of RoIs.

        Args:
            features: (N, C, H, W), from `feature_map`.
            rois: R RoIs, in pixels of the images of `features`.

        Returns:
            (W, D) float for the W <= R distinct RoIs, of which no two have the same windows, and (R,) int64, which of
            them each RoI is.
        """
        parts, which = self.distinct_parts(features, rois)
        return torch.cat(list(parts)), which

    def distinct_parts(self, features: Tensor, rois: RoIs) -> tuple[Iterator[Tensor], Tensor]:
        """Returns what `distinct_features` does, the features as an iterator of their chunks (C, D), one at a time."""
        return self.roi_networks().distinct_parts(features, rois)

    def roi_networks(self) -> RoINetworks:
        """Returns the RoI network of each region, which computes the features of RoIs."""
        foreground = None if self.foreground is None else self._foreground_number
        return RoINetworks((self.backbone.roi_head, *self.stacks), self.regions, self.backbone, foreground)

    def _all_outputs(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Computes the outputs of `head` for any number of RoIs, without gradient."""
        scores, deltas, which = self._distinct_outputs(features, rois)
        return scores[which], deltas[which]

    @torch.no_grad()
    def copy_roi_head(self) -> None:
        """Gives the RoI network of each region the weights of `backbone.roi_head`, except that of foreground."""
        for number, network in enumerate(self.stacks, start=1):
            if self.foreground is None or number != self._foreground_number:
                network.load_state_dict(self.backbone.roi_head.state_dict())

    def _distinct_outputs(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the outputs of the W distinct windows, and (R,) int64, the window of each RoI."""
        parts, which = self.distinct_parts(features, rois)
        outputs = [self._outputs(torch.cat(group)) for group in grouped(parts, AT_ONCE)]
        scores, deltas = (torch.cat(column) for column in zip(*outputs, strict=True))
        return scores, deltas, which

    def windows(self, rois: RoIs, region: Region | None = None) -> Tensor:
        """Returns the window (R, 5), or (R, 9), of a region of each RoI, by default of the RoI; see `windows_of`."""
        return windows_of(rois, region or Region(), self.backbone.stride)

    def _outputs(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(hidden[:, : self.scores.in_features])
        return scores, self.deltas(hidden[:, -self.deltas.in_features :]).unflatten(1, (self.num_classes, 4))

    def _loss_layer(self, features: Tensor, rois: RoIs, always: RoIs | None) -> tuple[dict[str, Tensor], RoIs]:
        everything, count = joined(rois, always), len(rois)
        scores, deltas = self.head(features, everything)
        losses = roi_losses(scores[:count].detach(), deltas[:count].detach(), rois)
        keep = self.sampler(rois, partial(weighted, losses))
        chosen = torch.cat([keep, torch.arange(count, len(everything), device=keep.device)])
        return detection_loss(scores, deltas, everything, chosen), everything[chosen]

    def _view(self, features: Tensor, scale: float) -> View:
        """Returns a view that scores boxes of the image on `features` (1, C, H, W), computed at `scale`."""

        def score_boxes(boxes: Tensor) -> BoxScores:
            rois = match([boxes * scale], [_no_objects(boxes)], mean=self.box_mean, std=self.box_std)
            with fast_linear(self):
                scores, deltas = self._all_outputs(features, rois)
            return BoxScores(self.probabilities(scores.float()), deltas.float() * self.box_std + self.box_mean)

        return View(score_boxes, scale)

    def _detections(self, views: Sequence[View], proposals: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        score_functions = self.merge(views)
        if self.refinement is not None:
            return self.refinement(score_functions, proposals, size, self.post_process)
        scores, deltas = (
            torch.cat(column)
            for column in zip(*(score_boxes(proposals) for score_boxes in score_functions), strict=True)
        )
        return self.post_process(scores, deltas, proposals.repeat(len(score_functions), 1), size)


def _no_objects(boxes: Tensor) -> dict[str, Tensor]:
    return {"boxes": boxes.new_zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64, device=boxes.device)}

"""Fast R-CNN (Girshick, 2015), the detector of the paper, trained with any `RoISampler`.

Shapes: R: RoIs of the mini-batch   B: RoIs trained on   N: images   P: proposals of an image   K: foreground classes
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import roi_pool

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
from ohem.detection.multiscale import Merge, View, union
from ohem.detection.post_process import BoxScores, PostProcess
from ohem.detection.shortlist import Shortlist
from ohem.draws import Use, begin_image, is_seeded
from ohem.kernels.fast_linear import fast_linear
from ohem.kernels.low_precision import is_exact, low_precision
from ohem.kernels.roi_pool import roi_max_pools
from ohem.losses import detection_loss, roi_losses, weighted
from ohem.mining import hard_examples
from ohem.read_only import read_only
from ohem.rois import BACKGROUND, BOX_MEAN, BOX_STD, RoIs, check_normalisation, match
from ohem.samplers import Losses, RoISampler
from ohem.samplers.base import by_image, check_sampler
from ohem.targets import read_targets

# Number of RoIs that go through the read-only pass at once: it bounds the memory for any R. A GPU is slow with few.
CHUNK, CHUNK_ON_GPU = 256, 2048
# Cells from the corner of the feature map to which windows reach: no feature map is so large.
BITS = 13
FARTHEST = 2 ** (BITS - 1)
IMPLEMENTATIONS = ("read_only", "loss_layer")


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
        check_choice("implementation", implementation, IMPLEMENTATIONS)
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
        self.trained_on = 0
        """Number of RoIs of the last mini-batch, over which its losses are means."""
        self.scores = nn.Linear(backbone.dim, num_classes)
        self.deltas = nn.Linear(backbone.dim, 4 * num_classes)
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
            features = self.backbone(images)
            sizes = [(image.shape[-2], image.shape[-1]) for image in images]
            views = [[self._view(features[i : i + 1], 1.0)] for i in range(len(images))]
            return [self._detections(*inputs) for inputs in zip(views, proposals, sizes, strict=True)]
        if targets is None:
            raise ValueError("FastRCNN in train mode needs targets; call .eval() for detections")
        targets = read_targets(targets, len(images), num_classes=self.num_classes)
        rois = match(proposals, targets, mean=self.box_mean, std=self.box_std)  # first: a GPU has nothing to wait for
        features = self.backbone(images)
        always = background_regions(targets)
        if self.implementation == "loss_layer":
            return self._loss_layer(features, rois, always)
        rois, losses = self._to_rank(features, rois, targets)
        keep = self.sampler(rois, losses)
        trained = _joined(rois[keep], always)
        scores, deltas = self.head(features, trained)
        self.trained_on = len(trained)
        return detection_loss(scores, deltas, trained)

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
        views = [self._view(self.backbone([image]), scale) for image, scale in zip(images, scales, strict=True)]
        return self._detections(views, proposals, size)

    def head(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Computes scores (R, K + 1) and normalised deltas (R, K + 1, 4) of `rois` on `features` (N, C, H, W)."""
        (pooled,) = self._pooled(features, self.windows(rois), chunk=max(len(rois), 1))
        if not self._draws():
            return self._outputs(self.backbone.roi_head(pooled))
        order = rois.images.argsort(stable=True)
        parts = torch.split(pooled[order], _counts(rois.images, len(features)))
        hidden = torch.cat([self._hidden(i, Use.TRAINING_PASS, [part]) for i, part in enumerate(parts)])
        return self._outputs(hidden[order.argsort()])

    def read_only_losses(
        self, features: Tensor, rois: RoIs, cls_weight: float = 1.0, box_weight: float = 1.0
    ) -> Tensor:
        """Computes the loss (R,) of every RoI, classification + box regression, in the read-only pass."""
        if not self.rescore_top or is_exact(features.device) or features.dtype == torch.float64:
            return weighted(self.read_only_parts(features, rois), cls_weight, box_weight)
        with low_precision(self.backbone.roi_head, features) as rounded:
            losses = weighted(self.read_only_parts(rounded, rois), cls_weight, box_weight)
        hardest = torch.cat([here[hard_examples(losses[here], self.rescore_top)] for here in by_image(rois)])
        losses[hardest] = weighted(self.read_only_parts(features, rois[hardest]), cls_weight, box_weight)
        return losses

    def read_only_parts(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Computes the two losses (R,) of `roi_losses` in the read-only pass."""
        with read_only(self):
            scores, deltas = self._all_outputs(features, rois)
            return roi_losses(scores, deltas, rois)

    def distinct_features(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Computes the inputs of the two output layers, for any number of RoIs.

        RoIPool rounds to cells of the feature map, and RoIs with the same cells have identical features. Therefore the
        RoI network runs on the distinct windows, in chunks that bound the memory.

        Args:
            features: (N, C, H, W), from the backbone.
            rois: R RoIs, in pixels of the images of `features`.

        Returns:
            (W, D) float for the W <= R distinct windows, and (R,) int64, the window of each RoI.
        """
        windows, which = _distinct(self.windows(rois))
        chunk = CHUNK if features.device.type == "cpu" else CHUNK_ON_GPU
        if not self._draws():
            hidden = [self.backbone.roi_head(pooled) for pooled in self._pooled(features, windows, chunk)]
            return torch.cat(hidden), which
        hidden = []
        for i, part in enumerate(torch.split(windows, _counts(windows[:, 0], len(features)))):
            alone = torch.cat([torch.zeros_like(part[:, :1]), part[:, 1:]], dim=1)
            hidden.append(self._hidden(i, Use.READ_ONLY_PASS, self._pooled(features[i : i + 1], alone, chunk)))
        return torch.cat(hidden), which

    def _draws(self) -> bool:
        """Returns whether each image needs a pass of its own, with its own seed, through the dropout layers."""
        return is_seeded() and any(
            isinstance(layer, nn.Dropout) and layer.training and layer.p > 0
            for layer in self.backbone.roi_head.modules()
        )

    def _hidden(self, image: int, use: Use, chunks: Iterable[Tensor]) -> Tensor:
        """Computes the features (W, D) of pooled windows of one image, with its own random numbers."""
        begin_image(image, use, self.device)
        return torch.cat([self.backbone.roi_head(pooled) for pooled in chunks])

    def _all_outputs(self, features: Tensor, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Computes the outputs of `head` for any number of RoIs, without gradient."""
        hidden, which = self.distinct_features(features, rois)
        scores, deltas = self._outputs(hidden)
        return scores[which], deltas[which]

    def windows(self, rois: RoIs) -> Tensor:
        """Returns (R, 5): image, first column, first row, last column, last row that RoIPool covers, inclusive."""
        # RoIPool includes the last cell of a box, so it gets the last pixel, not the pixel after it.
        last_pixel = rois.boxes - rois.boxes.new_tensor([0, 0, 1, 1])
        cells = (last_pixel / self.backbone.stride + 0.5).floor().clamp(-FARTHEST, FARTHEST - 1)
        return torch.cat([rois.images[:, None].to(cells), cells], dim=1)

    def _pooled(self, features: Tensor, windows: Tensor, chunk: int) -> Iterator[Tensor]:
        """Yields RoIPool of `windows` (W, 5), `chunk` at a time: (chunk, C, S, S)."""
        size = self.backbone.pool_size
        if features.is_floating_point():
            # Under autocast they may be bfloat16: RoIPool has no CPU kernel for it, and it would round windows beyond
            # cell 256.
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            windows = windows.to(features)
        # torchvision's CPU kernel has one thread, and prepares a gradient that this pass does not have.
        if features.device.type == "cpu" and not torch.is_grad_enabled():
            return roi_max_pools(features, windows, size, chunk)
        return (roi_pool(features, part, (size, size)) for part in torch.split(windows, chunk))

    def _outputs(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.scores(hidden), self.deltas(hidden).unflatten(1, (self.num_classes, 4))

    def _loss_layer(self, features: Tensor, rois: RoIs, always: RoIs | None) -> dict[str, Tensor]:
        joined, count = _joined(rois, always), len(rois)
        scores, deltas = self.head(features, joined)
        losses = roi_losses(scores[:count].detach(), deltas[:count].detach(), rois)
        keep = self.sampler(rois, partial(weighted, losses))
        chosen = torch.cat([keep, torch.arange(count, len(joined), device=keep.device)])
        self.trained_on = len(chosen)
        return detection_loss(scores, deltas, joined, chosen)

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


def _counts(images: Tensor, count: int) -> list[int]:
    """Returns how many of `images` (R,), numbers of images in any order, are 0, 1, ..., `count` - 1."""
    numbers: list[int] = torch.bincount(images.long(), minlength=count).tolist()
    return numbers


def _distinct(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct rows of `windows` (R, 5) in ascending order, and which of them each window is, (R,) int64.

    A window is written as one whole number, of which the image has 11 bits: sorting rows takes many times as long.
    """
    places = torch.arange(4 * BITS, -1, -BITS, device=windows.device)
    lowest = -FARTHEST * (places < 4 * BITS).long()
    numbers, which = torch.unique(((windows.long() - lowest) << places).sum(dim=1), return_inverse=True)
    return ((numbers[:, None] >> places) % 2**BITS + lowest).to(windows), which


def background_regions(targets: Sequence[Mapping[str, Any]]) -> RoIs | None:
    """Returns the regions that are always trained on; None if no target has some."""
    if not any("background" in target for target in targets):
        return None
    regions = [target.get("background", target["boxes"][:0]) for target in targets]
    rois = match(regions, targets, add_ground_truth=False)
    return rois[rois.labels == BACKGROUND]


def _joined(rois: RoIs, others: RoIs | None) -> RoIs:
    """Returns the RoIs of both, which are of the same mini-batch."""
    if others is None:
        return rois
    parts = rois, others
    return RoIs(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.ious for part in parts]),
        rois.num_images,
    )


def _no_objects(boxes: Tensor) -> dict[str, Tensor]:
    return {"boxes": boxes.new_zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64, device=boxes.device)}

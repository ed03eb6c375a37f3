"""What torchvision's detectors need so that several processes train them as one does.

Images have random numbers of their own, and can be padded to the largest of the whole mini-batch. Batch norm uses the
statistics of all processes. The numbers that the losses were divided by are known.

Shapes: A: anchors or RoIs of an image   N: images   C: channels
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import all_gather, all_reduce, get_world_size
from torch.nn.functional import batch_norm
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ohem.draws import Use, begin_image
from ohem.integrations.dense import MinedLoss
from ohem.integrations.rcnn import OHEMRoIHeads
from ohem.integrations.rpn import OHEMRPN
from ohem.recorder import Recorder


class SeededSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]  # torchvision is not typed
    """torchvision's random sampler, with the random numbers of each image."""

    use: Use
    count: Tensor | int = 0
    """Number of examples that were drawn from the last mini-batch."""

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns masks (A,) of the foreground and of the background that is drawn in each image."""
        foreground, background = [], []
        for image, labels in enumerate(matched_idxs):
            begin_image(image, self.use, labels.device)
            drawn = super().__call__([labels])
            foreground += drawn[0]
            background += drawn[1]
        self.count = torch.stack([mask.sum() for mask in (*foreground, *background)]).sum()
        return foreground, background


class PaddingTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform, which can pad images to more than the largest of them."""

    least_size: tuple[int, int] = (0, 0)

    def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
        """Returns the sizes [C, height, width] of a batch of images, before they are rounded up."""
        return super().max_by_axis([*the_list, [0, *self.least_size]])  # type: ignore[no-any-return]


class CountingSSD(SSD):  # type: ignore[misc]
    """torchvision's SSD, which counts its foreground."""

    count: Tensor | int = 0
    """Number of foreground anchors of the last mini-batch."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the losses; the last argument is the object of each anchor (A,) of each image, negative for none."""
        matched = kwargs.get("matched_idxs", args[-1] if args else ())
        self.count = torch.stack([(of_image >= 0).sum() for of_image in matched]).sum()
        return super().compute_loss(*args, **kwargs)


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the images of all processes, which have equally many of the same size.

    `SyncBatchNorm` of torch is for GPUs alone.
    """

    def forward(self, batch: Tensor) -> Tensor:
        """Normalises (N, C, H, W). A read-only pass has the statistics of this process alone."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(batch)
        output, mean, var = cast(Any, _Normalise).apply(batch, self.weight, self.bias, self.eps)
        count = get_world_size() * batch.numel() / batch.shape[1]
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        return cast(Tensor, output)


class OrderedBatchNorm(nn.BatchNorm2d):
    """Batch norm of images that pass one by one, with the running statistics of one process.

    One process averages the statistics of one image after the other. Here the images of all processes pass at the same
    time; they are averaged in the order of the processes, which is that of the mini-batch.
    """

    def forward(self, batch: Tensor) -> Tensor:
        """Normalises (N, C, H, W) by its own statistics."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(batch)
        own = torch.zeros_like(torch.stack([self.running_mean, self.running_var]))
        output = batch_norm(batch, own[0], own[1], self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        of_all = [torch.empty_like(own) for _ in range(get_world_size())]
        all_gather(of_all, own)
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += len(of_all)
        for mean, var in of_all:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return output


class _Normalise(torch.autograd.Function):
    """Normalises a batch (N, C, H, W) by the mean and the variance of all processes, and returns both."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        values = batch.to(weight.dtype)  # autocast has half precision
        mean = _mean_of_all(values.mean(dim=(0, 2, 3)))
        centred = values - mean[:, None, None]
        var = _mean_of_all(centred.square().mean(dim=(0, 2, 3)))
        inverse = (var + eps).rsqrt()
        normalised = centred * inverse[:, None, None]
        ctx.save_for_backward(normalised, weight, inverse)
        ctx.mark_non_differentiable(mean, var)
        ctx.dtype = batch.dtype
        return (normalised * weight[:, None, None] + bias[:, None, None]).to(batch.dtype), mean, var

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normalised, weight, inverse = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        products = gradient * normalised
        sums = gradient.sum(dim=(0, 2, 3)), products.sum(dim=(0, 2, 3))
        count = gradient.numel() / len(weight)
        mean, slope = _mean_of_all(torch.stack(sums) / count)[:, :, None, None]
        of_batch = (gradient - mean - normalised * slope) * (weight * inverse)[:, None, None]
        return of_batch.to(ctx.dtype), sums[1], sums[0], None


def _mean_of_all(values: Tensor) -> Tensor:
    all_reduce(values)
    return values / get_world_size()


def share_batch_norm(model: nn.Module, *, one_by_one: bool = False) -> None:
    """Makes batch norm that is trained use the statistics of all processes.

    Args:
        model: the detector.
        one_by_one: whether each image is normalised by itself.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = OrderedBatchNorm if one_by_one else SharedBatchNorm


def prepare_shared(model: Any) -> None:
    """Gives images of a Faster R-CNN or SSD random numbers of their own, and makes it count and pad as described above.

    `with_ohem` must be called before, if at all: it replaces random samplers.
    """
    model.transform.__class__ = PaddingTransform
    if isinstance(model, SSD):
        if "compute_loss" not in vars(model):
            model.__class__ = CountingSSD
        return
    for part, mined, use in ((model.rpn, OHEMRPN, Use.ANCHORS), (model.roi_heads, OHEMRoIHeads, Use.SAMPLER)):
        if not isinstance(part, mined):
            part.fg_bg_sampler.__class__ = SeededSampler
            part.fg_bg_sampler.use = use


def number_trained_on(model: Any, loss: str) -> Tensor | int:
    """Returns the number of examples of the last mini-batch that `loss` was divided by; it was by 1 if there is none.

    Args:
        model: a detector after `prepare_shared`.
        loss: name of the loss.
    """
    if isinstance(model, SSD):
        mined = vars(model).get("compute_loss")
        if not isinstance(mined, MinedLoss):
            return cast(CountingSSD, model).count
        recorder = cast(Recorder, mined.sampler)
        assert recorder.rois is not None
        return recorder.rois.foreground.sum() if mined.loss == "builtin" else _chosen(recorder)
    part = model.rpn if loss in ("loss_objectness", "loss_rpn_box_reg") else model.roi_heads
    if isinstance(part, OHEMRPN | OHEMRoIHeads):
        return _chosen(part.mining)
    return part.fg_bg_sampler.count  # type: ignore[no-any-return]


def _chosen(recorder: Recorder) -> int:
    assert recorder.chosen is not None
    return len(recorder.chosen)

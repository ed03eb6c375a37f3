"""Online hard example mining for any criterion: the mean over the hardest examples of a mini-batch.

Shapes: N: images or samples   E: examples, the elements of what the criterion gives   V: those that are not ignored
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ohem.mining import hard_examples


class OHEMLoss(nn.Module):
    """`OHEMLoss(CrossEntropyLoss(reduction="none"))(input, target)`: the mean loss of the hardest examples.

    An example is an element of what the criterion gives: a sample in classification (N,), a pixel in segmentation
    (N, H, W), a coordinate in regression (N, D). To rank samples by several coordinates, give a criterion that adds
    them up. Of V examples that are not ignored, `max(min_kept, round(keep * V))` are kept, at most V; ties go to the
    first.

    Args:
        criterion: module or function (input, target) -> losses (N, ...), not reduced.
        keep: share of the examples that is kept, 0 to 1; unused with `threshold`.
        min_kept: number of examples that are kept in any case.
        threshold: keep every example whose loss is above it, and at least `min_kept`, as is usual in segmentation.
        per_image: count and rank within each of the N rather than over the mini-batch.
        ignore_index: examples with this target are left out; by default that of the criterion, if it or the function
            of a `functools.partial` has one; a criterion that wraps another does not tell. The target must then be
            of the shape of the losses; else say which examples count with `valid`.
        global_batch: with several processes, rank over the mini-batches of all of them. Each then returns its share,
            scaled so that the mean over processes, which DistributedDataParallel takes of gradients, is the mean loss
            of the kept.

    Raises:
        ValueError: the criterion reduces, or a number is out of range.
    """

    def __init__(
        self,
        criterion: Callable[[Tensor, Tensor], Tensor],
        keep: float = 0.25,
        min_kept: int = 1,
        *,
        threshold: float | None = None,
        per_image: bool = False,
        ignore_index: int | None = None,
        global_batch: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(criterion, type) or not callable(criterion):
            raise ValueError(
                f'OHEMLoss needs a criterion to call, CrossEntropyLoss(reduction="none"), not {criterion!r}'
            )
        if _setting(criterion, "reduction") not in (None, "none"):
            name = type(criterion).__name__
            raise ValueError(f'OHEMLoss needs a loss for every example: make it {name}(reduction="none")')
        if not 0 <= keep <= 1:
            raise ValueError(f"keep is a share between 0 and 1, not {keep}")
        if min_kept < 0:
            raise ValueError(f"min_kept must be at least 0, not {min_kept}")
        if per_image and global_batch:
            raise ValueError("per_image ranks within an image, global_batch over all processes: choose one")
        self.criterion = criterion
        self.keep, self.min_kept, self.threshold = keep, min_kept, threshold
        self.per_image, self.global_batch = per_image, global_batch
        self.asked_to_ignore = ignore_index is not None
        self.ignore_index = _setting(criterion, "ignore_index") if ignore_index is None else ignore_index
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, input: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:  # noqa: A002  torch's name
        """Scalar mean loss of the kept examples; 0, with a graph, where there is none.

        Args:
            input, target: as the criterion takes them.
            valid: bool, of the shape of the losses; False leaves an example out, besides `ignore_index`.

        Raises:
            ValueError: the criterion gave a single number, `valid` is of another shape than its losses, or the target
                is, although `ignore_index` was given.
        """
        losses = self.criterion(input, target)
        if losses.dim() == 0:
            raise ValueError('OHEMLoss needs a loss for every example: give a criterion with reduction="none"')
        usable = self._usable(losses, target, valid)
        kept = self._kept(losses.detach().float(), usable)
        self._last = losses.detach(), usable, kept
        chosen = losses[kept]
        if self.global_batch and _processes() > 1:
            # Half precision would overflow in a sum over many pixels.
            count = _added_up(torch.tensor(len(chosen), device=losses.device)).clamp(min=1)
            return chosen.float().sum() * _processes() / count
        return chosen.float().mean() if len(chosen) else losses.flatten()[:0].float().sum()

    @property
    def mining(self) -> dict[str, float]:
        """Plain numbers of the last call: `examples` V, `kept`, `loss_kept` and `loss_all`, means; empty before it."""
        if self._last is None:
            return {}
        losses, usable, kept = self._last
        return {
            "examples": float(usable.sum()),
            "kept": float(kept.sum()),
            "loss_kept": _mean(losses[kept]),
            "loss_all": _mean(losses[usable]),
        }

    def extra_repr(self) -> str:
        """The settings, in `print(model)`."""
        kept = f"keep={self.keep}" if self.threshold is None else f"threshold={self.threshold}"
        return f"{kept}, min_kept={self.min_kept}, per_image={self.per_image}, ignore_index={self.ignore_index}"

    def _usable(self, losses: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        usable = torch.ones_like(losses, dtype=torch.bool)
        if self.ignore_index is not None and target.shape == losses.shape:
            usable = target != self.ignore_index
        elif self.asked_to_ignore:
            raise ValueError(
                f"ignore_index needs a target for each loss, and the target is {tuple(target.shape)}, the losses "
                f"{tuple(losses.shape)}: say which examples count with valid="
            )
        if valid is None:
            return usable
        if valid.shape != losses.shape:
            raise ValueError(f"valid is {tuple(valid.shape)}, and the losses {tuple(losses.shape)}: give it that shape")
        return usable & valid

    def _kept(self, losses: Tensor, usable: Tensor) -> Tensor:
        """Which examples are kept: bool, of the shape of `losses`, which are float32."""
        if losses[usable].isnan().any():
            warnings.warn(
                "some losses are NaN: they are mined last, but the network or its input is broken",
                RuntimeWarning,
                stacklevel=4,
            )
        if self.per_image:
            pairs = zip(losses[..., None].flatten(1), usable[..., None].flatten(1), strict=True)
            rows = [self._hardest(row, here) for row, here in pairs]
            return torch.stack(rows).view_as(losses) if rows else usable
        flat, here = losses.flatten(), usable.flatten()
        found = (
            self._hardest_of_all(flat, here) if self.global_batch and _processes() > 1 else self._hardest(flat, here)
        )
        return found.view_as(losses)

    def _hardest(self, losses: Tensor, usable: Tensor) -> Tensor:
        """(E,) bool: of the usable among `losses` (E,)."""
        places = usable.nonzero().squeeze(1)
        found = hard_examples(losses[places], self._number(losses[places]))
        return torch.zeros_like(usable).index_fill(0, places[found], True)

    def _number(self, losses: Tensor) -> int:
        """How many of `losses` (V,) to keep."""
        if self.threshold is not None:
            return max(self.min_kept, int((losses > self.threshold).sum()))
        return max(self.min_kept, round(self.keep * len(losses)))

    def _hardest_of_all(self, losses: Tensor, usable: Tensor) -> Tensor:
        """The same among the examples of all processes, in the order of their ranks."""
        length = torch.tensor(len(losses), device=losses.device)
        lengths = _gathered(length)
        most = int(torch.stack(lengths).max())
        padded = [_pad(each, most) for each in (losses, usable)]
        pairs = zip(*(_gathered(each) for each in padded), lengths, strict=True)
        both = [(values[:n], here[:n]) for values, here, n in pairs]
        found = self._hardest(torch.cat([values for values, _ in both]), torch.cat([here for _, here in both]))
        start = int(torch.stack(lengths[: distributed.get_rank()]).sum()) if distributed.get_rank() else 0
        return found[start : start + len(losses)]


def _setting(criterion: Any, name: str) -> Any:
    """Of a module, or of what a `functools.partial` was given; None where it has none."""
    return criterion.keywords.get(name) if isinstance(criterion, partial) else getattr(criterion, name, None)


def _mean(losses: Tensor) -> float:
    return float(losses.float().mean()) if losses.numel() else 0.0


def _processes() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def _gathered(tensor: Tensor) -> list[Tensor]:
    """Of every process, in the order of their ranks."""
    found = [torch.empty_like(tensor) for _ in range(_processes())]
    distributed.all_gather(found, tensor)
    return found


def _added_up(tensor: Tensor) -> Tensor:
    distributed.all_reduce(tensor)
    return tensor


def _pad(tensor: Tensor, length: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor))])

"""Online hard example mining for any criterion: the mean over the hardest examples of a mini-batch.

Shapes: N: images or samples   E: examples, the elements of what the criterion gives   V: those that are not ignored
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ohem.checks import (
    check_bool,
    check_callable,
    check_integer,
    check_number,
    check_optional,
    check_share,
    check_tensor,
    describe,
    is_false,
)
from ohem.mining import hard_examples

Criterion = Callable[..., Tensor]
"""Gives the losses (N, ...) of N examples, not reduced, for (input, target)."""


class OHEMLoss(nn.Module):
    """`OHEMLoss(CrossEntropyLoss(reduction="none"))(input, target)`: the mean loss of the hardest examples.

    An example is an element of what the criterion gives: a sample in classification (N,), a pixel in segmentation
    (N, H, W), a coordinate in regression (N, D). To rank samples by several coordinates, give a criterion that adds
    them up. Of V examples that are not ignored, `max(min_kept, round(keep * V))` are kept, at most V; ties go to the
    first.

    The trainer of Hugging Face takes it as `compute_loss_func`: of what a model returns, `logits` are the input.

    Args:
        criterion: module or function (input, target) -> losses (N, ...), not reduced; more arguments of a call are
            passed on, as `TripletMarginLoss` needs them.
        keep: share of the examples that is kept, 0 to 1; unused with `threshold`.
        min_kept: number of examples that are kept in any case.
        threshold: keep every example whose loss is above it, and at least `min_kept`, as is usual in segmentation. The
            usual threshold there, 0.7, is one of the probability of the right class: give `-math.log(0.7)`.
        per_image: count and rank within each of the N rather than over the mini-batch.
        ignore_index: examples with this target are left out; by default that of the criterion, if it or the function
            of a `functools.partial` has one; a criterion that wraps another does not tell. The target must then be
            of the shape of the losses; else say which examples count with `valid`.
        global_batch: with several processes, rank over the mini-batches of all of them. Each then returns its share,
            scaled so that the mean over processes, which DistributedDataParallel takes of gradients, is the mean loss
            of the kept.
        rank_by: another criterion of the same arguments, whose losses choose the examples; those of `criterion` are
            trained. With class weights in `criterion`, `rank_by=CrossEntropyLoss(reduction="none")` chooses without.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a criterion reduces, a number is out of range, or two options exclude each other.
    """

    def __init__(
        self,
        criterion: Criterion,
        keep: float = 0.25,
        min_kept: int = 1,
        *,
        threshold: float | None = None,
        per_image: bool = False,
        ignore_index: int | None = None,
        global_batch: bool = False,
        rank_by: Criterion | None = None,
    ) -> None:
        super().__init__()
        _check_criterion("criterion", criterion)
        check_optional(_check_criterion, "rank_by", rank_by)
        check_share("keep", keep)
        check_integer("min_kept", min_kept)
        check_optional(check_number, "threshold", threshold)
        check_bool("per_image", per_image)
        check_optional(check_integer, "ignore_index", ignore_index, None)
        check_bool("global_batch", global_batch)
        if per_image and global_batch:
            raise ValueError("per_image ranks within an image, global_batch over all processes: choose one")
        self.criterion, self.rank_by = criterion, rank_by
        self.keep, self.min_kept, self.threshold = keep, min_kept, threshold
        self.per_image, self.global_batch = per_image, global_batch
        self.asked_to_ignore = ignore_index is not None
        self.ignore_index = _setting(criterion, "ignore_index") if ignore_index is None else ignore_index
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(
        self,
        input: Any,  # noqa: A002  torch's name
        target: Any,
        *more: Any,
        valid: Tensor | None = None,
        num_items_in_batch: Any = None,
        **options: Any,
    ) -> Tensor:
        """Returns the scalar mean loss of the kept examples; 0, with a graph, where there is none.

        Args:
            input, target, more, options: as the criterion takes them. Of an `input` that is what a model of Hugging
                Face returns, its `logits` are taken. One argument more than the criterion requires is `valid`.
            valid: of the shape of the losses, bool or 0 and 1; False leaves an example out, besides `ignore_index`.
            num_items_in_batch: given by the trainer of Hugging Face, which accumulates gradients over several
                mini-batches with it; unused, since each is divided by the number of its kept examples.

        Returns:
            float64 where the losses are, else float32.

        Raises:
            TypeError: the criterion returned no tensor of numbers, or `valid` is no tensor of bool or integers.
            ValueError: the criterion gave a single number, `valid` is of another shape than its losses or holds others
                than 0 and 1, or the target is of another shape, although `ignore_index` was given.
        """
        arguments, valid = _arguments(self.criterion, (_logits(input), target, *more), valid)
        losses = _losses("criterion", self.criterion, *arguments, **options)
        usable = self._usable(losses, target, valid)
        kept = self._kept(self._ranking(losses, arguments, options), usable)
        self._last = losses.detach(), usable, kept
        chosen = _at_least_float32(losses[kept])
        if self.global_batch and _processes() > 1:
            # Half precision would overflow in a sum over many pixels.
            count = _added_up(torch.tensor(len(chosen), device=losses.device)).clamp(min=1)
            return chosen.sum() * _processes() / count
        return chosen.mean() if len(chosen) else _at_least_float32(losses.flatten()[:0]).sum()

    def _ranking(self, losses: Tensor, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
        """float32, of the shape of `losses`: what the examples are ranked by."""
        if self.rank_by is None:
            return losses.detach().float()
        with torch.no_grad():
            ranking = _losses("rank_by", self.rank_by, *arguments, **options)
        if ranking.shape != losses.shape:
            raise ValueError(
                f"rank_by gave losses of shape {tuple(ranking.shape)}, and the criterion {tuple(losses.shape)}: they "
                "must agree"
            )
        return ranking.detach().float()

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
        if self.ignore_index is not None and getattr(target, "shape", None) == losses.shape:
            usable = target != self.ignore_index
        elif self.asked_to_ignore:
            raise ValueError(
                f"ignore_index needs a target for each loss of shape {tuple(losses.shape)}, not {describe(target)}: "
                "say which examples count with valid="
            )
        return usable if valid is None else usable & _as_bool(valid, losses)

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


def _check_criterion(name: str, criterion: Any) -> None:
    check_callable(name, criterion, 'give one such as CrossEntropyLoss(reduction="none")')
    if _setting(criterion, "reduction") not in (None, "none"):
        kind = type(criterion).__name__
        raise ValueError(f'{name} must give a loss for every example: make it {kind}(reduction="none")')


def _arguments(criterion: Criterion, given: tuple[Any, ...], valid: Any) -> tuple[tuple[Any, ...], Any]:
    """What the criterion is to be given, and `valid`, which may be the argument after those."""
    count = max(2, _required(criterion))
    if len(given) > count + (valid is None):
        raise TypeError(
            f"{len(given)} arguments were given, and the criterion requires {count}: give the others by their names"
        )
    return given[:count], given[count] if len(given) > count else valid


def _required(criterion: Criterion) -> int:
    """How many arguments without a default it takes by their place; 2 where it does not say."""
    function = criterion.forward if isinstance(criterion, nn.Module) else criterion
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in places and p.default is inspect.Parameter.empty for p in parameters)


def _losses(name: str, criterion: Criterion, *arguments: Any, **options: Any) -> Tensor:
    """What the criterion gives, if that is a loss for each of several examples."""
    losses: object = criterion(*arguments, **options)
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        raise TypeError(f"the {name} must return losses, a tensor of floating dtype, not {describe(losses)}")
    if losses.dim() == 0:
        stated = _setting(criterion, "reduction") == "none"
        remedy = 'it was given reduction="none" and ignores it: ' if stated else 'give it reduction="none", or '
        raise ValueError(
            f"the {name}, {getattr(criterion, '__name__', type(criterion).__name__)}, returned a single number, and "
            f"mining needs a loss for every example: {remedy}make it return the losses before they are averaged"
        )
    return losses


def _logits(output: Any) -> Any:
    """Of what a model of Hugging Face returns, what a criterion takes."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)


def _as_bool(valid: Any, losses: Tensor) -> Tensor:
    check_tensor("valid", valid, valid.shape if isinstance(valid, Tensor) else ())
    wanted: Tensor = valid
    if valid.shape != losses.shape:
        raise ValueError(f"valid is {tuple(valid.shape)}, and the losses {tuple(losses.shape)}: give it that shape")
    if valid.dtype != torch.bool and is_false((valid == 0) | (valid == 1)):
        raise ValueError("valid must be bool, or 0 and 1: others are there, as if they were indices or weights")
    return wanted.to(losses.device) != 0


def _at_least_float32(losses: Tensor) -> Tensor:
    return losses.to(torch.promote_types(losses.dtype, torch.float32))


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

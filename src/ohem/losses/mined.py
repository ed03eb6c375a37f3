"""Online hard example mining for any criterion: the mean over the hardest examples of a mini-batch.

Shapes: N: images or samples   E: examples, the elements of the criterion's output   V: examples that are not ignored
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
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
"""A function of (input, target) that returns losses (N, ...), not reduced."""
_OTHER = (
    "make it return the losses before they are averaged, or mine with another one, such as "
    'CrossEntropyLoss(reduction="none"), and add this one to the result'
)

# The trainer of Hugging Face counts the labels that differ from this one, whatever the `ignore_index` of the criterion.
TRAINERS_IGNORE_INDEX = -100


class OHEMLoss(nn.Module):
    """The mean loss of the hardest examples: `OHEMLoss(CrossEntropyLoss(reduction="none"))(input, target)`.

    An example is an element of the criterion's output: a sample in classification (N,), a pixel in segmentation
    (N, H, W), a coordinate in regression (N, D). To rank samples by several coordinates, give a criterion that sums
    them. Of V examples that are not ignored, `max(min_kept, round(keep * V))` are kept, at most V. Of examples with the
    same loss, the first are kept.

    The trainer of Hugging Face takes this module as `compute_loss_func`. The `logits` of the model's output are then
    the input, and mini-batches whose gradients are accumulated are weighted by their numbers of labels.

    Args:
        criterion: module or function (input, target) -> losses (N, ...), not reduced. Further arguments of a call are
            passed on, as `TripletMarginLoss` needs them.
        keep: share of the examples that are kept, from 0 to 1. It is not used if `threshold` is given.
        min_kept: lowest number of examples that are kept.
        threshold: loss above which every example is kept, and at least `min_kept` of them, as is usual in segmentation.
            The usual threshold there, 0.7, is a probability of the correct class: give `-math.log(0.7)`.
        per_image: whether to count and rank within each of the N images, and not over the mini-batch.
        ignore_index: target of examples to leave out. The default is the `ignore_index` of the criterion, or of a
            `functools.partial`. If the criterion wraps another one, give it here. The target must have the shape of the
            losses; if it has not, mark the examples that count with `valid`.
        global_batch: whether to rank over the mini-batches of all processes. Each process then returns its share,
            scaled such that the mean over processes is the mean loss of the kept examples. DistributedDataParallel
            takes that mean of the gradients.
        rank_by: another criterion of the same arguments. Its losses choose the examples, and the losses of `criterion`
            are trained. If `criterion` has class weights, `rank_by=CrossEntropyLoss(reduction="none")` chooses without
            them.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a criterion reduces its losses, a number is out of range, or two options exclude each other.
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
        self.ignore_index_given = ignore_index is not None
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
        """Returns the mean loss of the kept examples, a scalar. If there are none, it is 0, with a graph.

        With `num_items_in_batch` it is multiplied by the share of the labels that this mini-batch has.

        Args:
            input, target, more, options: arguments of the criterion. If `input` is the output of a model of Hugging
                Face, its `logits` are passed on. If there is one positional argument more than the criterion requires,
                that is `valid`.
            valid: mask of the shape of the losses, bool or 0 and 1. False leaves an example out, in addition to
                `ignore_index`.
            num_items_in_batch: argument of the trainer of Hugging Face: number of labels, without those that are -100,
                of all mini-batches whose gradients it adds up before a step. The trainer does not divide by the number
                of these mini-batches.

        Returns:
            A scalar, float64 if the losses are float64, else float32.

        Raises:
            TypeError: the criterion did not return a tensor of floating dtype, `valid` is not a real tensor, or the
                target is not a tensor, although `num_items_in_batch` was given.
            ValueError: the criterion returned a single number; `valid` has another shape than the losses, or holds
                values other than 0 and 1; or the target has another shape, although `ignore_index` was given.
        """
        arguments, valid = _arguments(self.criterion, (_logits(input), target, *more), valid)
        losses = _losses("criterion", self.criterion, *arguments, **options)
        usable = self._usable(losses, target, valid)
        images = len(arguments[0]) if isinstance(arguments[0], Tensor) and arguments[0].dim() else None
        kept = self._kept(self._ranking(losses, arguments, options), usable, images)
        self._last = losses.detach(), usable, kept
        mean = self._mean_loss(losses, kept)
        if num_items_in_batch is None:
            return mean
        return mean * self._items(target) / torch.as_tensor(num_items_in_batch).clamp(min=1)

    def _mean_loss(self, losses: Tensor, kept: Tensor) -> Tensor:
        chosen = _at_least_float32(losses[kept])
        if self.global_batch and _processes() > 1:
            # Half precision would overflow in a sum over many pixels.
            count = _sum_over_processes(torch.tensor(len(chosen), device=losses.device)).clamp(min=1)
            return chosen.sum() * _processes() / count
        return chosen.mean() if len(chosen) else _at_least_float32(losses.flatten()[:0]).sum()

    def _items(self, target: Any) -> Tensor:
        """Returns the number of labels of this mini-batch, counted as the trainer of Hugging Face counts them."""
        check_tensor("the target, with num_items_in_batch,", target, getattr(target, "shape", ()))
        items: Tensor = (target != TRAINERS_IGNORE_INDEX).sum()
        # The losses of the processes are then shares of one mini-batch, and so are their numbers of labels.
        in_processes = self.global_batch and _processes() > 1
        return _sum_over_processes(items) / _processes() if in_processes else items

    def _ranking(self, losses: Tensor, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
        """Returns the losses that the examples are ranked by, float32, of the shape of `losses`."""
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
        """Numbers about the last call; empty before the first.

        `examples`: number of examples that are not ignored (V). `kept`: how many of them were kept. `loss_kept` and
        `loss_all`: mean losses of the kept and of all examples.
        """
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
        """Returns the settings for `print(model)`."""
        kept = f"keep={self.keep}" if self.threshold is None else f"threshold={self.threshold}"
        return f"{kept}, min_kept={self.min_kept}, per_image={self.per_image}, ignore_index={self.ignore_index}"

    def _usable(self, losses: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        usable = torch.ones_like(losses, dtype=torch.bool)
        if self.ignore_index is not None and _same_shape(target, losses):
            usable = (target != self.ignore_index).view_as(losses)
        elif self.ignore_index_given:
            raise ValueError(
                f"ignore_index needs a target for each loss of shape {tuple(losses.shape)}, not {describe(target)}: "
                "say which examples count with valid="
            )
        return usable if valid is None else usable & _as_bool(valid, losses)

    def _kept(self, losses: Tensor, usable: Tensor, images: int | None) -> Tensor:
        """Returns which examples are kept, bool, of the shape of `losses`, which are float32.

        `images` is the number of rows of the input; None if it is not a tensor.
        """
        if losses[usable].isnan().any():
            warnings.warn(
                "some losses are NaN: they are mined last, but the network or its input is broken",
                RuntimeWarning,
                stacklevel=4,
            )
        if self.per_image:
            if images is not None and images != len(losses):
                raise ValueError(
                    f"per_image needs a row of losses for each of {images} images, not {len(losses)}: leave it out, "
                    "or give a criterion that does not flatten its losses"
                )
            pairs = zip(losses[..., None].flatten(1), usable[..., None].flatten(1), strict=True)
            rows = [self._hardest(row, valid) for row, valid in pairs]
            return torch.stack(rows).view_as(losses) if rows else usable
        in_processes = self.global_batch and _processes() > 1
        choose = self._hardest_of_all_processes if in_processes else self._hardest
        return choose(losses.flatten(), usable.flatten()).view_as(losses)

    def _hardest(self, losses: Tensor, usable: Tensor) -> Tensor:
        """Returns which of the usable examples are kept, (E,) bool; `losses` are (E,)."""
        positions = usable.nonzero().squeeze(1)
        hardest = hard_examples(losses[positions], self._count(losses[positions]))
        return torch.zeros_like(usable).index_fill(0, positions[hardest], True)

    def _count(self, losses: Tensor) -> int:
        """Returns how many of `losses` (V,) to keep."""
        if self.threshold is not None:
            return max(self.min_kept, int((losses > self.threshold).sum()))
        return max(self.min_kept, round(self.keep * len(losses)))

    def _hardest_of_all_processes(self, losses: Tensor, usable: Tensor) -> Tensor:
        """Returns the same as `_hardest`, ranked among the examples of all processes."""
        lengths = _gather(torch.tensor(len(losses), device=losses.device))
        longest = int(torch.stack(lengths).max())
        all_losses, all_usable = (
            torch.cat([part[:length] for part, length in zip(_gather(_pad(values, longest)), lengths, strict=True)])
            for values in (losses, usable)
        )
        kept = self._hardest(all_losses, all_usable)
        start = int(torch.stack(lengths[: distributed.get_rank()]).sum()) if distributed.get_rank() else 0
        return kept[start : start + len(losses)]


def _check_criterion(name: str, criterion: Any) -> None:
    check_callable(name, criterion, 'give one such as CrossEntropyLoss(reduction="none")')
    parts = criterion.modules() if isinstance(criterion, nn.Module) else [criterion]
    # A sum of two criteria may have the attribute of its base class, and hand the argument to its parts.
    settings = [_setting(part, "reduction") for part in parts]
    if settings[0] not in (None, "none") and "none" not in settings:
        raise ValueError(f"{name} must give a loss for every example: {_remedy(criterion)}")


def _remedy(criterion: Any) -> str:
    """Returns what to do about a criterion that does not give a loss for every example."""
    function = criterion.func if isinstance(criterion, partial) else criterion
    kind = getattr(function, "__name__", type(function).__name__)
    if _setting(criterion, "reduction") == "none":
        return f'{kind} was given reduction="none": give it several examples, or {_OTHER}'
    parameters: Mapping[str, inspect.Parameter] = {}
    with suppress(TypeError, ValueError):  # a builtin may have no signature
        parameters = inspect.signature(type(function) if isinstance(function, nn.Module) else function).parameters
    if "reduction" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return f"{kind} has no argument reduction: {_OTHER}"
    if isinstance(function, nn.Module):
        return f'make it {kind}(reduction="none")'
    return f'make it functools.partial({kind}, reduction="none")'


def _arguments(criterion: Criterion, given: tuple[Any, ...], valid: Any) -> tuple[tuple[Any, ...], Any]:
    """Returns the arguments of the criterion, and `valid`, which may be the positional argument after those."""
    count = max(2, _required(criterion))
    if len(given) > count + (valid is None):
        raise TypeError(
            f"{len(given)} arguments were given, and the criterion requires {count}: give the others by their names"
        )
    return given[:count], given[count] if len(given) > count else valid


def _required(criterion: Criterion) -> int:
    """Returns how many positional arguments without a default `criterion` has; 2 if that is not known."""
    function = criterion.forward if isinstance(criterion, nn.Module) else criterion
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def _losses(name: str, criterion: Criterion, *arguments: Any, **options: Any) -> Tensor:
    """Returns the losses of the criterion. Raises if they are not a tensor with a loss for every example."""
    losses: object = criterion(*arguments, **options)
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        raise TypeError(f"the {name} must return losses, a tensor of floating dtype, not {describe(losses)}")
    if losses.dim() == 0:
        raise ValueError(
            f"the {name} returned a single number, and mining needs a loss for every example: {_remedy(criterion)}"
        )
    return losses


def _logits(output: Any) -> Any:
    """Returns the logits of the output of a Hugging Face model, and any other output as it is."""
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
        raise ValueError("valid must be bool, or 0 and 1: it has other values, such as indices or weights")
    return wanted.to(losses.device) != 0


def _same_shape(target: Any, losses: Tensor) -> bool:
    """Returns whether `target` has an element for each loss, dimensions of length 1 not counted: (N, 1, H, W)."""
    sides = [[n for n in getattr(values, "shape", [0]) if n != 1] for values in (target, losses)]
    return isinstance(target, Tensor) and sides[0] == sides[1]


def _at_least_float32(losses: Tensor) -> Tensor:
    return losses.to(torch.promote_types(losses.dtype, torch.float32))


def _setting(criterion: Any, name: str) -> Any:
    """Returns the attribute `name` of a module, or the argument of a `functools.partial`; None if there is none."""
    return criterion.keywords.get(name) if isinstance(criterion, partial) else getattr(criterion, name, None)


def _mean(losses: Tensor) -> float:
    return float(losses.float().mean()) if losses.numel() else 0.0


def _processes() -> int:
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def _gather(tensor: Tensor) -> list[Tensor]:
    """Returns the tensors of all processes, in the order of their ranks."""
    tensors = [torch.empty_like(tensor) for _ in range(_processes())]
    distributed.all_gather(tensors, tensor)
    return tensors


def _sum_over_processes(tensor: Tensor) -> Tensor:
    distributed.all_reduce(tensor)
    return tensor


def _pad(tensor: Tensor, length: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor))])

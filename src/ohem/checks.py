"""Checks of arguments: they raise `TypeError` or `ValueError`, with the argument, its value and the fix in the message.

A number is one of Python or NumPy. A bool is not a number, and neither is a tensor, whose value may be on a GPU. Types,
dtypes and shapes are always checked. The values of a tensor are checked only on the CPU: a GPU would have to wait until
they are read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["floating", "integer", "bool"]


def describe(value: Any) -> str:
    """Returns a short text for messages: the dtype and shape of a tensor, or the value and type of anything else."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:60] + '...'} ({type(value).__name__})"


def check_integer(name: str, value: Any, low: int | None = 0) -> None:
    """Raises `TypeError` if `value` is not an integer, and `ValueError` if it is less than `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, not {describe(value)}{_remedy(value)}")
    if low is not None and value < low:
        raise ValueError(f"{name} must be at least {low}, not {value}")


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, finite: bool = True) -> None:
    """Raises `TypeError` if `value` is not a number, and `ValueError` if it is NaN or not in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {describe(value)}{_remedy(value)}")
    if low <= float(value) <= high and not (finite and math.isinf(value)):
        return
    limits = {(False, False): "finite", (True, False): f"at least {low}", (False, True): f"at most {high}"}
    wanted = limits.get((low > -math.inf, high < math.inf), f"between {low} and {high}")
    raise ValueError(f"{name} must be {wanted}, not {value}")


def check_share(name: str, value: Any) -> None:
    """Raises `TypeError` or `ValueError` if `value` is not a number from 0 to 1."""
    check_number(name, value, 0, 1)


def check_optional(check: Callable[..., None], name: str, value: Any, *limits: Any) -> None:
    """Calls `check(name, value, *limits)` unless `value` is None."""
    if value is not None:
        check(name, value, *limits)


def check_bool(name: str, value: Any) -> None:
    """Raises `TypeError` if `value` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {describe(value)}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises `TypeError` if `value` is not a string, and `ValueError` if it is none of `choices`."""
    wanted = " or ".join(f'"{choice}"' for choice in choices)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {wanted}, not {describe(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be {wanted}, not {value!r}")


def check_callable(name: str, value: Any, example: str) -> None:
    """Raises `TypeError` if `value` cannot be called or is a class. The message ends with `example`, the fix."""
    if isinstance(value, type) or not callable(value):
        raise TypeError(f"{name} must be a function or an object that can be called, not {describe(value)}: {example}")


def check_type(name: str, value: Any, kind: type) -> None:
    """Raises `TypeError` if `value` is not of type `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, not {describe(value)}")


def check_tensor(name: str, value: Any, shape: Sequence[int | str | None], kind: Kind | None = None) -> None:
    """Checks the type, the dtype and the shape of a tensor.

    Args:
        name: name of the argument.
        value: value of the argument.
        shape: length of each dimension. A string is the symbol of a dimension in the documentation, whose length is not
            checked. If "..." comes first, any dimensions may precede the others.
        kind: kind of the dtype: "floating", "integer" or "bool". None allows all except complex.

    Raises:
        TypeError: `value` is not a tensor, or not of that kind.
        ValueError: it has another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, not {describe(value)}")
    if (kind is None and value.is_complex()) or (kind is not None and _kind(value) != kind):
        raise TypeError(f"{name} must be a tensor of {kind or 'real'} dtype, not {describe(value)}")
    rest = [length for length in shape if length != "..."]
    given = value.shape[len(value.shape) - len(rest) :] if len(rest) < len(shape) else value.shape
    if len(given) != len(rest) or any(isinstance(n, int) and n != m for n, m in zip(rest, given, strict=True)):
        wanted = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        raise ValueError(f"{name} must be of shape {wanted}, not {tuple(value.shape)}")


def check_size(name: str, value: Any) -> None:
    """Raises `TypeError` or `ValueError` if `value` is not (height, width), two numbers of pixels of at least 1."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{name} must be (height, width) in pixels, not {describe(value)}")
    for side in value:
        check_number(name, side, 1)


def check_sequence(name: str, value: Any, of: str) -> None:
    """Raises `TypeError` if `value` is not a list, a tuple or another sequence. `of` says what it must hold."""
    if not isinstance(value, (Sequence, Tensor)) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a list of {of}, not {describe(value)}")


def check_mapping(name: str, value: Any, keys: Sequence[str]) -> None:
    """Raises `TypeError` if `value` is not a mapping, and `ValueError` if it lacks one of `keys`."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict with {' and '.join(map(repr, keys))}, not {describe(value)}")
    for key in keys:
        if key not in value:
            raise ValueError(f"{name} has no {key!r}: give {' and '.join(map(repr, keys))}")


def check_model(name: str, value: Any) -> None:
    """Raises `TypeError` if `value` is not a `torch.nn.Module`."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, not {describe(value)}")


def is_false(condition: Tensor) -> bool:
    """Returns whether some of `condition` (bool, any shape) is false. On a GPU, which would wait, it returns False."""
    if condition.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not condition.all().tolist()


def is_finite(value: Tensor) -> bool:
    """Returns whether all of `value` (any shape and type) is finite."""
    # A sum is finite only if all are, and takes a seventeenth of the time; it may overflow where all are.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _kind(value: Tensor) -> Kind | None:
    if value.dtype == torch.bool:
        return "bool"
    if value.is_floating_point():
        return "floating"
    return None if value.is_complex() else "integer"


def _remedy(value: Any) -> str:
    return ": give value.item()" if isinstance(value, Tensor) and value.numel() == 1 else ""

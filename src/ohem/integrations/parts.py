"""Checks that a model's parts which mining bypasses are torchvision's own, and checks of the targets of each step.

Mining does not use these parts. If a user replaced one of them, on the class, the instance or the module, the
replacement would be ignored silently. So it is refused at every training step, even if it was made after `with_ohem`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torchvision
from torch import nn
from torchvision.models.detection import _utils
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from ohem.targets import read_targets

Check = Callable[[Any], None]
"""A function of a model that raises `TypeError` if a part of it is not what mining relies on."""


def is_original(function: Any, module: ModuleType, name: str | None = None) -> bool:
    """Returns whether `function` was defined as `name` in the source of `module`. A wrapper of it was not."""
    code = getattr(function, "__code__", None)
    if code is None or function.__globals__ is not vars(module):
        return False
    return name is None or code.co_name == name


def check_methods(part: Any, kind: type, module: ModuleType, *names: str, mined: type | tuple[()] = ()) -> None:
    """Raises `TypeError` if a method of `part` is not that of torchvision's `kind`, which `module` defines.

    An attribute of the instance is allowed if it has the type `mined`: mining put it there.
    """
    for name in names:
        own, original = getattr(type(part), name, None), getattr(kind, name)
        if not is_original(original, module, name):
            raise _replaced(f"{kind.__name__}.{name}", "which was replaced on the class")
        if name in vars(part) and not isinstance(vars(part)[name], mined):
            raise _replaced(f"the {name} of this {type(part).__name__}", "which was replaced on the instance")
        if own is not original:
            raise TypeError(
                f"with_ohem cannot see the losses of single examples in {type(part).__name__}, whose {name} is not "
                f"that of torchvision's {kind.__name__}: use the latter, or register your model"
            )


def check_overridden(part: Any, kind: type, mined: type, module: ModuleType, *names: str) -> None:
    """Raises `TypeError` if methods of `part` that `mined` overrides, or those of torchvision's `kind`, were replaced.

    Args:
        part: a `kind` without mining, or a `mined`, the class that `with_ohem` makes of it.
        kind: a class of torchvision.
        mined: the class derived from it that mines.
        module: the module of torchvision that defines `kind`.
        names: names of the methods.
    """
    for name in names:
        if not is_original(getattr(kind, name), module, name):
            raise TypeError(
                f"with_ohem would not use {kind.__name__}.{name}, which was replaced: put torchvision's back"
            )
    check_instance(part, mined, *names)


def check_instance(part: Any, mined: type, *names: str) -> None:
    """Raises `TypeError` if methods of the instance `part`, or of a class derived from `mined`, hide those of `mined`.

    Before `part` is a `mined`, its class must be torchvision's own.
    """
    for name in names:
        own = isinstance(part, mined) and getattr(type(part), name) is not getattr(mined, name)
        if own or name in vars(part):
            raise TypeError(
                f"with_ohem would not use the {name} of this {type(part).__name__}, which was replaced: put "
                "torchvision's back, or say how to mine with yours with with_ohem.register"
            )


def check_parameters(kind: type, parameters: Mapping[str, Sequence[str]]) -> None:
    """Raises `TypeError` if methods of torchvision's `kind` have other parameters than those by their names."""
    for name, expected in parameters.items():
        if list(inspect.signature(getattr(kind, name)).parameters) != list(expected):
            raise TypeError(
                f"with_ohem does not know {kind.__name__}.{name} of torchvision {torchvision.__version__}: "
                "install torchvision 0.19 to 0.29, or a later ohem"
            )


def check_globals(module: ModuleType, **expected: Any) -> None:
    """Raises `TypeError` if a name in `module` is bound to another object than expected."""
    for name, value in expected.items():
        if getattr(module, name, None) is not value:
            raise _replaced(f"{module.__name__}.{name}", "which was replaced")


def check_function(module: ModuleType, name: str, origin: ModuleType) -> None:
    """Raises `TypeError` if the function `name` in `module` is not the one that `origin` defines."""
    if not is_original(getattr(module, name, None), origin, name):
        raise _replaced(f"{module.__name__}.{name}", "which was replaced")


def check_random_sampler(sampler: Any, name: str) -> None:
    """Raises `TypeError` if `sampler`, which mining replaces, is not torchvision's random sampler."""
    original = BalancedPositiveNegativeSampler
    if type(sampler) is not original or not is_original(vars(original)["__call__"], _utils):
        raise TypeError(
            f"with_ohem replaces {name}, and this one, {type(sampler).__name__}, is not torchvision's: put "
            "torchvision's back, or make yours a sampler of (rois, losses) and give it to with_ohem"
        )


class TrainingGuard:
    """A forward pre-hook of a model that checks its parts and its targets in train mode.

    Args:
        check: function that raises if a part of the model was replaced.
        first_class: lowest label of an object.
        num_classes: function that returns the number of labels of the model, background included; None if unknown.
    """

    def __init__(self, check: Check, first_class: int, num_classes: Callable[[Any], int | None]) -> None:
        self.check, self.first_class, self.num_classes = check, first_class, num_classes

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the arguments with the targets as `read_targets` returns them; None if there is nothing to change."""
        targets = args[1] if len(args) > 1 else kwargs.get("targets")
        if not model.training or targets is None:
            return None
        self.check(model)
        images: Sequence[Any] = args[0] if args else kwargs["images"]
        read = read_targets(targets, len(images), first_class=self.first_class, num_classes=self.num_classes(model))
        if len(args) > 1:
            return (args[0], read, *args[2:]), kwargs
        return args, {**kwargs, "targets": read}


def guard(model: nn.Module, check: Check, first_class: int, num_classes: Callable[[Any], int | None]) -> None:
    """Makes `model` check its parts and its targets before every training step. A second call replaces `check`."""
    guards = [hook for hook in model._forward_pre_hooks.values() if isinstance(hook, TrainingGuard)]
    for hook in guards:
        hook.check = check
    if not guards:
        model.register_forward_pre_hook(TrainingGuard(check, first_class, num_classes), with_kwargs=True)


def _replaced(part: str, how: str) -> TypeError:
    return TypeError(
        f"with_ohem would not use {part}, {how}: put torchvision's back, or say how to mine with yours with "
        "with_ohem.register"
    )

"""`with_ohem`: a call that makes a detector train on the examples that a sampler chooses, and its registry."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from torch import jit, nn

from ohem.recorder import Recorder
from ohem.samplers import OHEMSampler, RoISampler

M = TypeVar("M", bound=nn.Module)
Install = Callable[..., None]
"""A function of (model, sampler, **options) that makes the model train on what the sampler chooses."""
Default = Callable[[Any], RoISampler]
"""A function of a model that returns its sampler if the user gives none."""

OPTIONAL = {
    "monai": "ohem.integrations.monai",
    "transformers": "ohem.integrations.transformers",
    "ultralytics": "ohem.integrations.yolo",
}
"""Package that defines types of models -> the module of `ohem` that registers them.

The module is imported when `with_ohem` gets the first model of that package, or of a type derived from its types.
"""


class WithOHEM:
    """The type of `with_ohem`. `__call__` documents how to use it; `register` adds a type of model."""

    def __init__(self) -> None:
        self._known: dict[type[nn.Module], tuple[Install, Default]] = {}
        self.__doc__ = type(self).__call__.__doc__

    def __call__(self, model: M, sampler: RoISampler | None = None, **options: Any) -> M:
        """Makes `model` train on the examples that `sampler` chooses, and changes nothing else.

        The keys of the losses and of the `state_dict`, and the output in eval mode, stay the same. After a training
        step, `print(model.mining)` reports what was chosen; `model.mining` is a `Recorder`. A second call on the same
        model replaces the sampler.

        In Faster, Mask and Keypoint R-CNN, the `batch_size` of a sampler is the number of RoIs per image (the paper's
        B / N). It replaces torchvision's `box_batch_size_per_image`, 512 random RoIs per image, and
        `box_positive_fraction`: both are then unused. With `OHEMSampler(batch_size=128)`, a mini-batch of two images
        trains on at most 256 RoIs. The paper has 64 per image. For torchvision's detectors, start with 128: mining
        needs fewer RoIs than random sampling, because it takes the hardest, and most of the others are easy background.
        In our measurement with Faster R-CNN (docs/results/torchvision.md), 128 had the mAP of torchvision's 512 within
        noise, and 32 needed a lower learning rate.

        With `rpn_sampler`, these three also mine in their first stage, the region proposal network (RPN): among all
        anchors instead of 256 random ones per image. `model.rpn.mining` reports it. `OHEMSampler(256, nms_iou=None)`
        chooses as many. `RandomSampler(512, bg_lo=0)` as `sampler` draws the RoIs as torchvision does, so that only the
        RPN is mined.

        Args:
            model: a detector of torchvision, ultralytics (YOLO), transformers (RT-DETR and its kin) or MONAI
                (RetinaNet), or of a type that was registered.
            sampler: chooses the examples to train on. None takes the default of the type of model: `OHEMSampler()` for
                R-CNN, `OHEMSampler(256, nms_iou=None)` for RetinaNet and FCOS, for SSD a `RatioSampler` with the ratio
                of the model, `RatioSampler(3, min_negatives=256)` for YOLO, and `RatioSampler()` for RT-DETR and its
                kin.
            options: further options of the type of model. R-CNN has `rpn_sampler`, which chooses the anchors; None
                draws them at random. One-stage detectors have `loss`: see `ohem.integrations.dense`.

        Returns:
            The same object as `model`.

        Raises:
            TypeError: the type of `model` is not registered, or `model` is scripted or wrapped; there is no such
                option; or `sampler` cannot be called.
        """
        if sampler is not None and (isinstance(sampler, type) or not callable(sampler)):
            raise TypeError(f"a sampler is called with (rois, losses), and {sampler!r} is not: give OHEMSampler()")
        if isinstance(model, jit.ScriptModule):
            raise TypeError("with_ohem cannot change a scripted model: give it the one that was scripted")
        entry = self._entry(model)
        if entry is None:
            wrapped = getattr(model, "_orig_mod", getattr(model, "module", None))
            if self._entry(wrapped) is not None:
                raise TypeError(
                    f"with_ohem takes a {type(wrapped).__name__} before it is wrapped, and not {type(model).__name__}: "
                    "call it on the model, then wrap that"
                )
            known = ", ".join(sorted(kind.__name__ for kind in self._known))
            raise TypeError(
                f"with_ohem knows {known}, and not {type(model).__name__}: give it one of these, or say how with "
                f"with_ohem.register({type(model).__name__})"
            )
        install, default = entry
        for name in options:
            if name not in inspect.signature(install).parameters:
                raise TypeError(f"with_ohem has no option {name!r} for {type(model).__name__}: leave it out")
        chosen = default(model) if sampler is None else sampler
        recorder = chosen if isinstance(chosen, Recorder) else Recorder(chosen)
        install(model, recorder, **options)
        model.mining = recorder  # type: ignore[assignment]
        return model

    def register(
        self, kind: type[nn.Module], *, default: Default = lambda _: OHEMSampler()
    ) -> Callable[[Install], Install]:
        """Decorates the function that makes models of type `kind`, and of types derived from it, use a sampler.

        That function is `(model, sampler, **options) -> None`. The sampler that it gets is a `Recorder` of the user's
        sampler, and is called like any `RoISampler`. Its keyword arguments are the `options` of `with_ohem`.

        Args:
            kind: type of the models.
            default: function of a model that returns the sampler if the user gives none.
        """

        def remember(install: Install) -> Install:
            self._known[kind] = install, default
            return install

        return remember

    def _entry(self, model: object) -> tuple[Install, Default] | None:
        """Returns what is registered for the type of `model`, or for the nearest type it is derived from."""
        kinds = type(model).__mro__
        for package in {kind.__module__.partition(".")[0] for kind in kinds} & OPTIONAL.keys():
            import_module(OPTIONAL[package])
        return next((self._known[kind] for kind in kinds if kind in self._known), None)


with_ohem = WithOHEM()

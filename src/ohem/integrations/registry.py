"""`with_ohem`: one line that makes a detector train on what a sampler chooses, and how other detectors join in."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import jit, nn

from ohem.recording import Recorder
from ohem.samplers import OHEMSampler, RoISampler

M = TypeVar("M", bound=nn.Module)
Install = Callable[..., None]
Default = Callable[[Any], RoISampler]


class WithOHEM:
    """See `with_ohem`."""

    def __init__(self) -> None:
        self._known: dict[type[nn.Module], tuple[Install, Default]] = {}

    def __call__(self, model: M, sampler: RoISampler | None = None, **options: Any) -> M:
        """Makes `model` train on the examples that `sampler` chooses; everything else stays as it is.

        Loss keys, `state_dict` keys, and what the model returns in eval mode are unchanged. `model.mining`, a
        `Recorder`, tells what was chosen; called again on the same model, the new sampler takes the old one's place.

        Args:
            model: a detector of torchvision, or of a type that was registered.
            sampler: which examples to train on, and obeyed as it is given; None: what suits the kind of model.
            options: what the kind of model leaves open besides; `loss`, in one-stage detectors: see
                `ohem.integrations.dense`.

        Returns:
            The same object.

        Raises:
            TypeError: nobody has said how to mine in such a model, or it is scripted or wrapped, or has no such option,
                or the sampler is none.
        """
        if sampler is not None and (isinstance(sampler, type) or not callable(sampler)):
            raise TypeError(f"a sampler is called with (rois, losses), and {sampler!r} is not: give OHEMSampler()")
        if isinstance(model, jit.ScriptModule):
            raise TypeError("with_ohem cannot change a scripted model: give it the one that was scripted")
        found = next((self._known[kind] for kind in type(model).__mro__ if kind in self._known), None)
        if found is None:
            wrapped = getattr(model, "_orig_mod", getattr(model, "module", None))
            if isinstance(wrapped, tuple(self._known)):
                raise TypeError(
                    f"with_ohem takes a {type(wrapped).__name__} before it is wrapped, and not {type(model).__name__}: "
                    "call it on the model, then wrap that"
                )
            known = ", ".join(sorted(kind.__name__ for kind in self._known))
            raise TypeError(
                f"with_ohem knows {known}, and not {type(model).__name__}: give it one of these, or say how with "
                f"with_ohem.register({type(model).__name__})"
            )
        install, default = found
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
        """Decorates what makes a model of type `kind`, or one derived from it, ask a sampler.

        That is (model, sampler, **options) -> None. The sampler it is given is a `Recorder` around the person's; it is
        called as any `RoISampler`. Options are keyword arguments of its own.

        Args:
            kind: the type of the models.
            default: the sampler of a model for which a person names none.
        """

        def remember(install: Install) -> Install:
            self._known[kind] = install, default
            return install

        return remember


with_ohem = WithOHEM()

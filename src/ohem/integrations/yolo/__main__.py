"""`python -m ohem.integrations.yolo`: the command `yolo` of ultralytics, whose trainings mine.

The arguments are those of `yolo`. Those that begin with `ohem.` choose the sampler:

    python -m ohem.integrations.yolo detect train model=yolo11n.yaml data=data.yaml
    python -m ohem.integrations.yolo detect train resume model=runs/detect/train/weights/last.pt
    python -m ohem.integrations.yolo detect train model=yolo11n.pt data=data.yaml ohem.sampler=ohem ohem.batch_size=128
"""

import sys
from ast import literal_eval

from ultralytics.cfg import ARGV, entrypoint
from ultralytics.utils.callbacks import base

from ohem.errors import InputError
from ohem.integrations.yolo import default_sampler
from ohem.integrations.yolo.trainer import MineInTrainer
from ohem.recorder import Recorder
from ohem.samplers import SAMPLERS, RoISampler

PREFIX = "ohem."


def read_sampler(arguments: list[str]) -> RoISampler:
    """Returns the sampler that the `arguments` choose, such as `ohem.sampler=ohem ohem.batch_size=128`.

    Raises:
        InputError: an argument is not `ohem.NAME=VALUE`, there is no such sampler, or it does not take the option.
    """
    options = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix(PREFIX).partition("=")
        if not (name and equals and value):
            raise InputError(f"{argument} must be {PREFIX}NAME=VALUE, such as {PREFIX}batch_size=128")
        options[name] = value
    if not options:
        return default_sampler()
    sampler = options.pop("sampler", "")
    if sampler not in SAMPLERS:
        raise InputError(f"{PREFIX}sampler must be one of {', '.join(SAMPLERS)}, not {sampler or 'missing'}")
    try:
        return SAMPLERS[sampler].make(**{name: _read(value) for name, value in options.items()})
    except (TypeError, ValueError) as error:
        raise InputError(f"{PREFIX}sampler={sampler} does not take these options: {error}") from error


def _read(value: str) -> object:
    try:
        return literal_eval(value)
    except (SyntaxError, ValueError):
        return value


def main(arguments: list[str]) -> int:
    """Runs the command `yolo` with `arguments`. Returns the exit status: 2 if the sampler is not known."""
    try:
        sampler = read_sampler([argument for argument in arguments if argument.startswith(PREFIX)])
    except InputError as error:
        print(f"ohem: {error}", file=sys.stderr)
        return 2
    # Every model of this process gets a copy of the default callbacks.
    MineInTrainer(Recorder(sampler)).add_to(base.default_callbacks)
    ARGV[:] = ["yolo", *(argument for argument in arguments if not argument.startswith(PREFIX))]
    entrypoint()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

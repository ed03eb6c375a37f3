"""Entry point of `ohem` and of `python -m ohem`. It handles signals before it imports anything slow."""

import sys
from collections.abc import Callable

from ohem.extras import describe_missing
from ohem.processes import run_interruptible


def main() -> None:
    """Runs the command line with the arguments of this process."""
    try:
        run_interruptible(_command_line)
    except ModuleNotFoundError as error:
        sentence = describe_missing(error.name, "the command line")
        if not sentence:
            raise
        print(f"ohem: {sentence}", file=sys.stderr)
        raise SystemExit(2) from error


def _command_line() -> Callable[[], None]:
    from ohem.cli import main as run

    return run


if __name__ == "__main__":
    main()

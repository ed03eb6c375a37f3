"""Entry point of `ohem` and of `python -m ohem`. It handles signals before it imports anything slow."""

from collections.abc import Callable

from ohem.processes import run_interruptible


def main() -> None:
    """Runs the command line with the arguments of this process."""
    run_interruptible(_command_line)


def _command_line() -> Callable[[], None]:
    from ohem.cli import main as run

    return run


if __name__ == "__main__":
    main()

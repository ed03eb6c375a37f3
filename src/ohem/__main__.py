"""Entry point of `ohem` and of `python -m ohem`: signals are handled before anything that takes time is imported."""

from collections.abc import Callable

from ohem.training.signals import run_interruptible


def main() -> None:
    """Runs the command line with the arguments of this process."""
    run_interruptible(_command_line)


def _command_line() -> Callable[[], None]:
    from ohem.cli import main as run

    return run


if __name__ == "__main__":
    main()

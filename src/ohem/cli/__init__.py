"""The command line. It imports torch only when a command runs, so that `--help` is quick."""

from ohem.cli import experiments, insight, training
from ohem.cli.app import app
from ohem.cli.run import main

__all__ = ["app", "experiments", "insight", "main", "training"]

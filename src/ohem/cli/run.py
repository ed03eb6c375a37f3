"""Runs a command of the program, and ends it in one sentence where the input is wrong."""

import signal
import sys
import warnings
from collections.abc import Sequence
from typing import get_origin

from cyclopts import CoercionError, CycloptsError, MissingArgumentError

from ohem.cli.app import app
from ohem.config.renamed import check_arguments
from ohem.errors import InputError
from ohem.io.console import discard_output, escape_what_the_encoding_lacks, exit_with, format_warning
from ohem.io.files import describe_os_error
from ohem.processes import end_with_parent, share_cores_while_waiting


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command: bad input ends in one sentence and exit status 2, a signal in 128 + its number."""
    warnings.formatwarning = format_warning
    escape_what_the_encoding_lacks()
    end_with_parent()
    share_cores_while_waiting()
    try:
        check_arguments(sys.argv[1:] if arguments is None else arguments)
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # else a full disk is noticed only when Python exits
    except (InputError, CycloptsError) as error:
        exit_with(f"{error}{_remedy(error)}")
    except KeyboardInterrupt:
        print(f"ohem: stopped by {signal.SIGINT.name}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # `ohem recipes | head`: Python must not write again at exit
        discard_output()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        exit_with(describe_os_error(error))


def _remedy(error: Exception) -> str:
    """Returns what the sentence of a wrong argument lacks."""
    argument = error.argument if isinstance(error, CycloptsError) else None
    if isinstance(error, MissingArgumentError) and argument and argument.name == "--recipe":
        return " `ohem recipes` lists them."
    if isinstance(error, CoercionError) and argument and get_origin(argument.hint) is tuple:
        return f" {argument.name} takes all values up to the next option: give other arguments before it."
    return ""

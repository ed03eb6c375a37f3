"""The exception for bad input; the command line prints it as one sentence and ends with exit status 2."""

from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: one sentence that names the file, the field and the remedy."""


def closest(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """Returns the known name that is spelled most like `name`; None where none has this likeness (0 to 1)."""
    from difflib import get_close_matches  # few commands need it, and it takes a millisecond

    return next(iter(get_close_matches(name, list(known), n=1, cutoff=likeness)), None)


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns the remedy for an unknown `name`: the known one that is spelled most like it, or all of them."""
    known = list(known)
    near = closest(name, known)
    return f"did you mean {near}?" if near else f"choose from {', '.join(known)}"

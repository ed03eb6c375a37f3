"""Packages that only some commands need, and the extra of `ohem` that installs each of them."""

from importlib import import_module
from typing import Any

from ohem.errors import InputError

EXTRAS = {
    "cv2": ("OpenCV", "proposals"),
    "jinja2": ("Jinja", "experiments"),
    "matplotlib": ("matplotlib", "experiments"),
    "scipy": ("SciPy", "experiments"),
    "sklearn": ("scikit-learn", "experiments"),
}
"""Package as Python imports it -> its name, and the extra."""


def import_extra(module: str, purpose: str, extra: str | None = None) -> Any:
    """Imports `module`, such as "scipy.stats".

    Args:
        module: a module of a package in `EXTRAS`.
        purpose: what needs it, as the message names it.
        extra: the extra that the message names, where several have the package.

    Raises:
        InputError: it is not installed.
    """
    title, usual = EXTRAS[module.split(".")[0]]
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f'{purpose} needs {title}: pip install "ohem[{extra or usual}]"') from error

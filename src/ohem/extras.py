"""Packages that only some commands need, and the extra of `ohem` that installs each of them."""

from importlib import import_module
from typing import Any

from ohem.errors import InputError

EXTRAS = {
    "cv2": ("OpenCV", "train"),
    "jinja2": ("Jinja", "experiments"),
    "matplotlib": ("matplotlib", "experiments"),
    "numpy": ("NumPy", "train"),
    "PIL": ("Pillow", "train"),
    "safetensors": ("safetensors", "train"),
    "scipy": ("SciPy", "train"),
    "sklearn": ("scikit-learn", "train"),
    "tensorboard": ("TensorBoard", "tensorboard"),
}
"""Package as Python imports it -> its name, and the extra."""


def import_extra(module: str, purpose: str) -> Any:
    """Imports `module`, such as "scipy.stats".

    Args:
        module: a module of a package in `EXTRAS`.
        purpose: what needs it, as the message names it.

    Raises:
        InputError: it is not installed.
    """
    title, extra = EXTRAS[module.split(".")[0]]
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f'{purpose} needs {title}: pip install "ohem[{extra}]"') from error

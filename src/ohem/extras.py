"""Packages that only a part of `ohem` needs, and the extra of `ohem` that installs each of them."""

from importlib import import_module

from ohem.errors import InputError

TYPE_CHECKING = False  # Type checkers know this name. The command line imports this module before it handles signals.
if TYPE_CHECKING:
    from typing import Any

EXTRAS = {
    "aiohttp": ("aiohttp", "remote"),
    "cv2": ("OpenCV", "train"),
    "cyclopts": ("cyclopts", "train"),
    "defusedxml": ("defusedxml", "train"),
    "distributed": ("Dask", "cluster"),
    "filelock": ("filelock", "train"),
    "fsspec": ("fsspec", "remote"),
    "hotcoco": ("hotcoco", "train"),
    "jinja2": ("Jinja", "experiments"),
    "joblib": ("joblib", "train"),
    "lightning_fabric": ("Lightning Fabric", "train"),
    "matplotlib": ("matplotlib", "experiments"),
    "pyarrow": ("PyArrow", "train"),
    "rich": ("rich", "train"),
    "safetensors": ("safetensors", "train"),
    "scipy": ("SciPy", "train"),
    "sklearn": ("scikit-learn", "train"),
    "tensorboard": ("TensorBoard", "tensorboard"),
    "yaml": ("PyYAML", "train"),
}
"""Package as Python imports it -> its name, and the extra."""
WITHOUT_EXTRA = {"gcsfs": "gcsfs", "mlflow": "MLflow", "s3fs": "s3fs", "wandb": "Weights & Biases"}
"""Package that no extra installs -> its name."""


def import_extra(module: str, purpose: str) -> "Any":
    """Imports `module`, such as "scipy.stats".

    Args:
        module: a module of a package in `EXTRAS` or `WITHOUT_EXTRA`.
        purpose: what needs it, as the message names it.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(describe_missing(module, purpose)) from error


def describe_missing(module: str | None, purpose: str) -> str:
    """Returns a sentence with the command that installs the package of `module`; empty if it is not a known package."""
    package = (module or "").split(".")[0]
    if package in WITHOUT_EXTRA:
        return f"{purpose} needs {WITHOUT_EXTRA[package]}: pip install {package}"
    if package not in EXTRAS:
        return ""
    title, extra = EXTRAS[package]
    return f'{purpose} needs {title}: pip install "ohem[{extra}]"'

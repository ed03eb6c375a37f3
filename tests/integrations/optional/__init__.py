"""Detectors and tools of optional packages."""

import sys
import warnings
from importlib import import_module
from typing import Any


def import_quietly(name: str) -> Any:
    """Imports a module of an optional package without its warnings, and without what MONAI imports for other networks.

    MONAI takes 0.7 s of CPU time after torchvision; transformers and matplotlib, which it imports, take 1.7 s.
    """
    others = ("transformers", "matplotlib") if name.startswith("monai") else ()
    unused = [package for package in others if package not in sys.modules]
    sys.modules.update(dict.fromkeys(unused))  # type: ignore[arg-type]  # None: not installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    finally:
        for package in unused:
            del sys.modules[package]

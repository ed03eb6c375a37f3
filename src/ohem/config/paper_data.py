"""The data of the paper's tables. Imports nothing slow, since the command line needs it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ohem.config.recipes import DATA
from ohem.errors import InputError

LARGER = {"voc0712": "07+12", "voc0712test": "07++12", "cocotrainval": "trainval"}
SERVER = {"voc12", "voc0712test"}
"""Data sets that are tested on VOC 2012, whose test annotations only the server has."""


@dataclass(frozen=True)
class PaperData:
    """Places of the data of the paper's tables."""

    train: tuple[str, ...] = ()
    """With --small: data sets to train on. Rows of the paper's larger sets (07+12) use all of them, other rows use the
    first."""
    test: tuple[str, ...] = ()
    """With --small: data sets to test on."""
    voc07: Path | None = None
    """Folder of VOC2007 with its trainval and test images."""
    voc12: Path | None = None
    """Folder of VOC2012 with its trainval and test images."""
    coco: Path | None = None
    """Folder of COCO with annotations/, train2014/, val2014/ and test2015/."""

    def small(self, data: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Returns sources to train and test on instead of the paper's `data`; None if the user gave no larger set."""
        if data not in LARGER:
            return self.train[:1], self.test
        return (self.train, self.test) if len(self.train) > 1 else None

    def paper(self, data: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns sources to train and test on, none to test on if the server tests.

        Raises:
            InputError: the user did not name the folder of the data.
        """
        train, test, _ = DATA[data]
        return tuple(self._placed(train)), tuple(self._placed(test))

    def server(self) -> str:
        """Returns the source whose detections are sent to the VOC server."""
        return next(self._placed("VOC2012:test"))

    def _placed(self, sources: str) -> Iterator[str]:
        folders = {"VOC2007": (self.voc07, "voc07"), "VOC2012": (self.voc12, "voc12"), "COCO": (self.coco, "coco")}

        def place(match: re.Match[str]) -> str:
            folder, option = folders[match[0]]
            if folder is None:
                raise InputError(f"this table needs {match[0]}: name its folder with --data.{option}, or give --small")
            return str(folder)

        return (re.sub("|".join(folders), place, source) for source in sources.split())

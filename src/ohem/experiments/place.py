"""Where the data of the paper's tables are. Imports nothing heavy: the command line knows it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ohem.errors import InputError
from ohem.training.recipes import DATA

LARGER = {"voc0712": "07+12", "voc0712test": "07++12", "cocotrainval": "trainval"}
SERVER = {"voc12", "voc0712test"}
"""Tested on VOC 2012, whose test annotations are the server's."""


@dataclass(frozen=True)
class Place:
    """Where the data are."""

    train: tuple[str, ...] = ()
    """With --small: sources to train on. The rows of the paper's larger sets (07+12) take all of them, the others the
    first."""
    test: tuple[str, ...] = ()
    """With --small: sources to test on."""
    voc07: Path | None = None
    """Folder of VOC2007, its trainval and test."""
    voc12: Path | None = None
    """Folder of VOC2012, its trainval and test."""
    coco: Path | None = None
    """Folder of COCO: annotations/, train2014/, val2014/, test2015/."""

    def small(self, data: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Sources to train and test on in place of the paper's `data`; None where there is no larger set."""
        if data not in LARGER:
            return self.train[:1], self.test
        return (self.train, self.test) if len(self.train) > 1 else None

    def paper(self, data: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Sources to train on, and to test on, none where the server does; InputError where a folder is missing."""
        train, test, _ = DATA[data]
        return tuple(self._placed(train)), tuple(self._placed(test))

    def server(self) -> str:
        """The source whose detections go to the VOC server."""
        return next(self._placed("VOC2012:test"))

    def _placed(self, sources: str) -> Iterator[str]:
        folders = {"VOC2007": (self.voc07, "voc07"), "VOC2012": (self.voc12, "voc12"), "COCO": (self.coco, "coco")}

        def place(match: re.Match[str]) -> str:
            folder, option = folders[match[0]]
            if folder is None:
                raise InputError(f"this table needs {match[0]}: name its folder with --data.{option}, or give --small")
            return str(folder)

        return (re.sub("|".join(folders), place, source) for source in sources.split())

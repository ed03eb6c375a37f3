"""Result files of the PASCAL VOC evaluation server, one for each class ("comp4": trained on any data)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ohem.errors import InputError
from ohem.io.files import atomic_write, remove_leftovers


def write_submission(
    folder: Path, ids: Sequence[str], detections: Sequence[Mapping[str, Tensor]], classes: Sequence[str]
) -> None:
    """Writes `folder`/comp4_det_test_CLASS.txt for each class, also for a class without detections.

    A line is `id score xmin ymin xmax ymax`, in pixels that are counted from 1, the last one included.

    Args:
        folder: it is made if it is missing.
        ids: ids of the images on the server.
        found: per image `boxes` (D, 4) in our convention, `labels` (D,) in 1..K and `scores` (D,).
        classes: names of the labels 1..K.

    Raises:
        InputError: a class cannot be part of a file's name.
    """
    for name in classes:
        if Path(name).name != name:
            raise InputError(f"the class {name!r} cannot be part of a file's name: rename it for the server")
    lines: dict[str, list[str]] = {name: [] for name in classes}
    for stem, image in zip(ids, detections, strict=True):
        columns = (image[key].tolist() for key in ("boxes", "labels", "scores"))
        for (x1, y1, x2, y2), label, score in zip(*columns, strict=True):
            lines[classes[label - 1]].append(f"{stem} {score:.6f} {x1 + 1:.2f} {y1 + 1:.2f} {x2:.2f} {y2:.2f}\n")
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    for name, lines_of_class in lines.items():
        with atomic_write(folder / f"comp4_det_test_{name}.txt") as temporary:
            temporary.write_text("".join(lines_of_class))

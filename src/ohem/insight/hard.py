"""`ohem hard`: offline hard negatives, the false positives of a detector that are background."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from ohem.config.schema import TestConfig
from ohem.data.coco import is_coco
from ohem.data.dataset import DetectionSet, ImageFolder
from ohem.data.sources import open_dataset
from ohem.data.yolo import is_yolo
from ohem.errors import InputError
from ohem.evaluation.evaluate import detect_all, load_detector
from ohem.inputs.examples import open_recipe_data
from ohem.insight.hard_files import NAME, Region, check_place, write_regions
from ohem.insight.results_file import read_detections
from ohem.metrics.inputs import Bools, Floats, Ints, pairs
from ohem.metrics.matching import classify_detections, match_all, overlaps
from ohem.training.run_folder import check_sources

BACKGROUND_IOU = 0.5
"""IoU with every object that a region of background is below, as in `ohem.rois.match`."""
SAME_IOU = 0.7
"""IoU from which two detections, of any classes, are one region."""


@dataclass(frozen=True)
class _Detected:
    """The detections of a data set."""

    data: DetectionSet
    detections: list[dict[str, Tensor]]
    classes: tuple[str, ...]
    origin: str
    """Run or file that they are of."""


def find_hard_negatives(
    run: Path | None,
    sources: Sequence[str],
    file: Path | None = None,
    out: Path | None = None,
    *,
    score: float = 0.1,
    most: int = 1000,
    draw: int = 48,
    test: TestConfig | None = None,
) -> list[Region]:
    """Writes the hardest false positives of a detector into a folder: hard.json, pictures/, regions/ and hardest.jpg.

    Args:
        run: run whose detections are used; None: those of `file`.
        sources: data sets, or folders of images without an object; default: the training data of the run.
        file: detections of any detector, in the result format of COCO.
        out: folder; default: RUN/hard.
        score: lowest score of a false positive.
        most: highest number of regions.
        draw: number of regions that are drawn.
        test: replaces the test options of the run.

    Returns:
        The regions, the hardest first.

    Raises:
        InputError: the run, the data, the file or an option is unfit, or the folder has files of another origin.
    """
    _check_options(run, sources, file, out, score, most, draw)
    place = out if out is not None else Path(run or ".") / "hard"
    check_place(place)
    made = _detections_of_file(file, sources) if run is None else _detections_of_run(run, sources, test, place)
    check_place(place, made.data)
    rows, on_objects = hard_negatives(made.detections, made.data, len(made.classes), score, most)
    regions = [
        Region(index, made.data.path(index).resolve(), tuple(box), made.classes[label - 1], value, overlap)
        for index, box, label, value, overlap in rows
    ]
    write_regions(place, regions, made.data, made.origin, draw)
    images = len({region.image_index for region in regions})
    print(f"{place / NAME}: {len(regions)} false positives in {images} of {len(made.data)} images")
    if on_objects:
        print(
            f"left out: {on_objects} false positives with an IoU of {BACKGROUND_IOU} or more with an object, or in an "
            "ignored one, which are no background"
        )
    return regions


def _check_options(
    run: Path | None,
    sources: Sequence[str],
    file: Path | None,
    out: Path | None,
    score: float,
    most: int,
    draw: int,
) -> None:
    if (run is None) == (file is None):
        raise InputError("ohem hard needs a run or --detections FILE.json, one of both: give one")
    if run is None and out is None:
        raise InputError("--detections has no run for the results: name a folder for them with --out")
    if run is None and not sources:
        raise InputError("--detections has no data of its own: name them with --data")
    if not 0 <= score <= 1:
        raise InputError(f"--score {score} is out of range: give 0 to 1")
    for option, value, low in (("most", most, 1), ("draw", draw, 0)):
        if value < low:
            raise InputError(f"--{option} {value} is out of range: give {low} or more")


def _detections_of_run(run: Path, sources: Sequence[str], test: TestConfig | None, place: Path) -> _Detected:
    model, recipe, step = load_detector(run, test)
    if not sources:
        check_sources(run, recipe.data.train)
    folders = _folders(sources)
    if folders:
        data: DetectionSet = ImageFolder(folders, recipe.data.classes)
    else:
        data = open_recipe_data(recipe, sources or recipe.data.train, "--data")
    check_place(place, data)  # before minutes of detection
    detections, _ = detect_all(model, data, recipe)
    return _Detected(data, detections, data.classes, f"{run}, step {step}")


def _detections_of_file(file: Path | None, sources: Sequence[str]) -> _Detected:
    assert file is not None  # after _check_options
    folders = _folders(sources)
    data = ImageFolder(folders) if folders else open_dataset(sources)
    detections, classes = read_detections(file, data)
    return _Detected(data, detections, classes, f"{file}")


def _folders(sources: Sequence[str]) -> list[str]:
    """Returns the sources if all of them are folders of images without an object, and nothing if one is a data set."""
    folders = [text for text in sources if Path(text).is_dir() and not is_coco(text) and not is_yolo(text)]
    for folder in folders:
        annotations = next((name for name in ("Annotations", "labels") if Path(folder, name).is_dir()), None)
        if annotations:
            raise InputError(
                f"{folder} has annotations in {annotations}/, and a folder must hold no object: name the data set, "
                "FOLDER:SPLIT, ANNOTATIONS.json:IMAGES or data.yaml:SPLIT"
            )
    if folders and len(folders) < len(sources):
        raise InputError(f"--data names {folders[0]}, a folder of images, and a data set: give one kind at a time")
    return folders


Row = tuple[int, list[float], int, float, float]
"""Index of the image, box, label, score, highest IoU with an object."""


def hard_negatives(
    detections: Sequence[dict[str, Tensor]], data: DetectionSet, classes: int, score: float, most: int
) -> tuple[list[Row], int]:
    """Ranks the false positives that are background.

    A detection is a false positive as in `ohem.metrics.voc`. It is background if its IoU with every object, of any
    class, is below 0.5, and it shares less than half of its area, and of the area of an ignored object, with that. Of
    detections with an IoU of at least 0.7 in one image, the one with the highest score is used.

    Args:
        detections: boxes (D, 4), scores (D,) and labels (D,) for each image of `data`.
        data: the images and their objects.
        classes: number of classes.
        score: lowest score.
        most: highest number of false positives.

    Returns:
        The false positives, the highest score first; and the number of those that are not background.
    """
    targets = [data.target(i) for i in range(len(data))]
    matches, _, ignore, _ = match_all(detections, targets, classes)
    order = np.argsort(-matches.scores, kind="stable")
    wrong = np.zeros(len(order), dtype=bool)
    wrong[order] = classify_detections(matches, order, ignore, BACKGROUND_IOU)[1]
    wrong &= matches.scores >= score
    rows: list[Row] = []
    on_objects = first = 0
    for index, (prediction, truth) in enumerate(pairs(detections, targets, classes)):
        of_image = wrong[first : first + len(prediction.boxes)]
        first += len(of_image)
        overlap, ignored = _overlaps(prediction.boxes, truth.boxes, truth.ignore)
        background = (overlap < BACKGROUND_IOU) & ~ignored
        on_objects += int(np.count_nonzero(of_image & ~background))
        for i in _distinct(prediction.boxes, prediction.scores, np.flatnonzero(of_image & background)):
            values = prediction.boxes[i].tolist(), int(prediction.labels[i]), float(prediction.scores[i])
            rows.append((index, *values, float(overlap[i])))
    rows.sort(key=lambda row: -row[3])
    return rows[:most], on_objects


def _overlaps(boxes: Floats, objects: Floats, ignore: Bools) -> tuple[Floats, Bools]:
    """Returns the highest IoU of each box with an object, and whether it lies in an ignored object, or that in it."""
    overlap: Floats = overlaps(boxes, objects[~ignore]).max(axis=1, initial=0)
    regions = objects[ignore]
    shared = np.maximum(overlaps(boxes, regions, of_first=True), overlaps(regions, boxes, of_first=True).T)
    return overlap, np.any(shared >= 0.5, axis=1)


def _distinct(boxes: Floats, scores: Floats, rows: Ints) -> Iterator[int]:
    """Yields those of `rows` that overlap no better one; boxes without area are left out."""
    rows = rows[(boxes[rows, 2:] > boxes[rows, :2]).all(axis=1)]
    yield from rows[nms(torch.from_numpy(boxes[rows]), torch.from_numpy(scores[rows]), SAME_IOU).numpy()].tolist()

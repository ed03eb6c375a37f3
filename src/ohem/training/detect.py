"""Detections in pictures of the person's own, one picture after the other: drawn, and as JSON."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ohem.data.image import image_size, read_image
from ohem.data.loader import Picture, picture
from ohem.detection.draw import draw_detections
from ohem.errors import InputError
from ohem.files import check_output, replacing
from ohem.locks import locked
from ohem.proposals.selective_search import selective_search
from ohem.training.build import sides_to_test
from ohem.training.config import ProposalConfig, Recipe, TestConfig
from ohem.training.evaluate import detect, load_detector

NAME = "detections.json"
KEYS = {"image", "boxes", "labels", "scores"}
COMMENT = b"detections drawn by ohem"  # in the JPEG files, which may be written again
PUBLISH_SECONDS = 0.5
FIRST = 10  # pictures after each of which the JSON is published
SHARE = 20  # publishing takes at most 1/20 of the time, however long the list is


def detect_files(run: Path, files: Sequence[Path], out: Path, score: float, test: TestConfig | None = None) -> None:
    """Detects in `files` with the newest checkpoint of `run`; writes pictures and detections.json into `out`.

    One picture is read, detected in and written after the other, so that memory does not grow with their number. The
    JSON is a list with, per file, `image`, `boxes` ([x1, y1, x2, y2] in pixels), `labels` (names) and `scores`, best
    first; it is a valid file of what is done at any time, at most half a second behind. The pictures, named as the
    files, show the detections of at least `score`. `test` takes the place of what the recipe of the run says about
    testing.

    Raises:
        InputError: no file is given, two have the same name, one is no picture, or something that this function did
            not write would be overwritten: then nothing is written. Or a picture is damaged behind its header: then
            those before it are done.
    """
    if not 0 <= score <= 1:
        raise InputError(f"--score {score} is out of range: give 0 to 1")
    outputs = _outputs(files, out)
    for path in files:
        image_size(path)  # reads the header: what is no picture should not wait until its turn
    model, recipe, _ = load_detector(run, test)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / f".{NAME}.lock", f"the folder {out}"), _publishing(out / NAME) as entries:
        for path, output in zip(files, outputs, strict=True):
            image = read_image(path)
            (found,) = detect(model, [_picture(str(path), image, recipe)])
            save_picture(draw_found(image, found, recipe.data.classes, score), output)
            entries.append(_entry(path, found, recipe.data.classes))
            print(f"{output}: {int((found['scores'] >= score).sum())} objects", flush=True)


def draw_found(image: Tensor, found: dict[str, Tensor], classes: Sequence[str], score: float) -> Tensor:
    """`image` uint8 (3, H, W) with the detections of at least `score`."""
    shown = found["scores"] >= score
    names = [classes[i - 1] for i in found["labels"][shown].tolist()]
    return draw_detections(image, found["boxes"][shown], names, found["scores"][shown].tolist())


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes uint8 (3, H, W) as a JPEG file."""
    with replacing(path) as beside:
        to_pil_image(picture).save(beside, format="JPEG", quality=92, comment=COMMENT)


def _outputs(files: Sequence[Path], out: Path) -> list[Path]:
    """The pictures to write, one for each of `files`; raises InputError where they cannot be written."""
    if not files:
        raise InputError("no picture is given: name the files behind the run")
    outputs = [out / f"{path.stem}.jpg" for path in files]
    counts = Counter(outputs)
    twice = next((path for path, output in zip(files, outputs, strict=True) if counts[output] > 1), None)
    if twice is not None:
        raise InputError(f"{twice} shares its name with another picture: detect in them one folder at a time")
    _check_outputs([*outputs, out / NAME], files)
    earlier = _images_of(out / NAME)
    drawn = {Path(image).stem for image in earlier}
    for output in outputs:
        if output.exists() and output.stem not in drawn and not _is_drawn(output):
            raise InputError(f"{output} is there already, and is no picture of `ohem detect`: choose another --out")
    return outputs


def _check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    by_file = {(stat.st_dev, stat.st_ino): path for path in inputs if path.exists() for stat in [path.stat()]}
    for output in outputs:
        if output.exists():
            stat = output.stat()
            same = by_file.get((stat.st_dev, stat.st_ino))
            check_output(output, [same] if same else [])


def _images_of(path: Path) -> list[str]:
    """The images in the detections.json of an earlier call; raises InputError where it is something else."""
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_bytes())
        if not isinstance(entries, list) or not all(isinstance(e, dict) and set(e) == KEYS for e in entries):
            raise ValueError("it has other fields")
        return [str(entry["image"]) for entry in entries]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no file of `ohem detect` ({error}): choose another --out, or move it") from error


def _is_drawn(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("comment") == COMMENT
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


class _Entries:
    """A list in JSON: it grows in `file`, at `parts`, and is published, complete, as `path`."""

    def __init__(self, path: Path, parts: Path, file: BinaryIO) -> None:
        self.path = path
        self.parts = parts
        self.file = file
        self.count = 0
        self.size = self.published = 0  # bytes; a signal may come in the middle of any line
        self.next = 0.0

    def append(self, entry: dict[str, Any]) -> None:
        """Adds `entry`; publishes it now or soon."""
        text = f"{',' if self.size else '['}\n{json.dumps(entry)}".encode()
        self.file.write(text)
        self.file.flush()
        self.size += len(text)
        self.count += 1
        if self.count <= FIRST or time.monotonic() >= self.next:
            self.publish()

    def publish(self) -> None:
        """Writes all entries to `path`, if any is new."""
        size = self.size
        if self.published == size:
            return
        started = time.monotonic()
        with replacing(self.path) as temporary:
            shutil.copyfile(self.parts, temporary)
            os.truncate(temporary, size)
            with temporary.open("ab") as file:
                file.write(b"\n]\n")
        self.published = size
        ended = time.monotonic()
        self.next = ended + max(PUBLISH_SECONDS, SHARE * (ended - started))


@contextmanager
def _publishing(path: Path) -> Iterator[_Entries]:
    """Gives the list of a JSON file; publishes what is in it at the end, whatever that is."""
    for file in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process: there is one writer
        file.unlink(missing_ok=True)
    parts = path.with_name(f".{path.name}.parts.tmp")
    try:
        with parts.open("wb") as content:
            entries = _Entries(path, parts, content)
            try:
                yield entries
            finally:
                entries.publish()
    finally:
        parts.unlink(missing_ok=True)


def _entry(path: Path, found: dict[str, Tensor], classes: Sequence[str]) -> dict[str, Any]:
    labels = [classes[i - 1] for i in found["labels"].tolist()]
    return {"image": str(path), "boxes": found["boxes"].tolist(), "labels": labels, "scores": found["scores"].tolist()}


def _picture(name: str, image: Tensor, recipe: Recipe) -> Picture:
    shorts, long = sides_to_test(recipe)
    return picture(name, image, _proposals(image, recipe.proposals), shorts=shorts, long=long)


def _proposals(image: Tensor, config: ProposalConfig) -> NDArray[np.float32]:
    """(P, 4) boxes in pixels of `image`."""
    if config.mode == "none":
        return np.zeros((0, 4), np.float32)
    bgr = image.flip(0).permute(1, 2, 0).contiguous().numpy()
    return selective_search(bgr, config.mode, config.seed)[: config.top]

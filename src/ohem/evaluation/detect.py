"""`ohem detect`: detections in image files, as pictures and as JSON, one image after the other."""

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

from ohem.config.schema import ProposalConfig, Recipe, TestConfig
from ohem.data.loader import ImagePyramid, make_pyramid
from ohem.data.transforms import image_size, read_image
from ohem.detection.draw import draw_detections
from ohem.errors import InputError
from ohem.evaluation.evaluate import detect_images, load_detector
from ohem.inputs.examples import sizes_to_test
from ohem.io.files import atomic_write, check_output
from ohem.io.locks import locked
from ohem.proposals.selective_search import selective_search

NAME = "detections.json"
KEYS = {"image", "boxes", "labels", "scores"}
COMMENT = b"detections drawn by ohem"  # marks the JPEG files that a later call may overwrite
PUBLISH_SECONDS = 0.5
FIRST = 10  # images; the JSON file is published after every one of them
SHARE = 20  # later, publishing takes at most 1/20 of the time


def detect_files(run: Path, files: Sequence[Path], out: Path, score: float, test: TestConfig | None = None) -> None:
    """Detects objects in `files` with the newest checkpoint of `run`; writes pictures and detections.json into `out`.

    The images are handled one after the other, so that memory does not grow with their number. The JSON file is a list
    with, per image, `image`, `boxes` ([x1, y1, x2, y2] in pixels), `labels` (names) and `scores`, highest first. It is
    valid at any time, and at most half a second behind.

    Args:
        run: folder of the run.
        files: image files.
        out: folder for the pictures, which have the names of the files, and detections.json.
        score: lowest score of a detection that is drawn.
        test: replaces the test options of the recipe.

    Raises:
        InputError: no file is given, two have the same name, one is no image, or a file of another program would be
            overwritten: then nothing is written. Or an image is damaged after its header: then the images before it
            are done.
    """
    if not 0 <= score <= 1:
        raise InputError(f"--score {score} is out of range: give 0 to 1")
    outputs = _outputs(files, out)
    for path in files:
        image_size(path)  # a file that is no image is reported before anything is computed
    model, recipe, _ = load_detector(run, test)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / f".{NAME}.lock", f"the folder {out}"), _publishing(out / NAME) as entries:
        for path, output in zip(files, outputs, strict=True):
            image = read_image(path)
            (detections,) = detect_images(model, [_picture(str(path), image, recipe)])
            save_picture(draw_confident(image, detections, recipe.data.classes, score), output)
            entries.append(_entry(path, detections, recipe.data.classes))
            print(f"{output}: {_count(detections['scores'], score)}", flush=True)


def _count(scores: Tensor, score: float) -> str:
    """Returns how many detections are drawn, and the highest score where none is."""
    drawn = int((scores >= score).sum())
    if drawn or not len(scores):
        return f"{drawn} object{'s' * (drawn != 1)}"
    return (
        f"0 objects of score {score} or more; the highest score is {float(scores.max()):.2f}: lower --score to draw it"
    )


def draw_confident(image: Tensor, detections: dict[str, Tensor], classes: Sequence[str], score: float) -> Tensor:
    """Draws the detections of at least `score` on `image`, uint8 (3, H, W)."""
    confident = detections["scores"] >= score
    names = [classes[i - 1] for i in detections["labels"][confident].tolist()]
    return draw_detections(image, detections["boxes"][confident], names, detections["scores"][confident].tolist())


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes `picture`, uint8 (3, H, W), as a JPEG file."""
    with atomic_write(path) as temporary:
        to_pil_image(picture).save(temporary, format="JPEG", quality=92, comment=COMMENT)


def _outputs(files: Sequence[Path], out: Path) -> list[Path]:
    """Returns the picture to write for each of `files`; raises `InputError` where it cannot be written."""
    if not files:
        raise InputError("no image is given: name the files after the run")
    outputs = [out / f"{path.stem}.jpg" for path in files]
    counts = Counter(outputs)
    twice = next((path for path, output in zip(files, outputs, strict=True) if counts[output] > 1), None)
    if twice is not None:
        raise InputError(f"{twice} has the same name as another image: detect in one folder at a time")
    _check_outputs([*outputs, out / NAME], files)
    earlier = _images_of(out / NAME)
    drawn = {Path(image).stem for image in earlier}
    for output in outputs:
        if output.exists() and output.stem not in drawn and not _is_drawn(output):
            raise InputError(f"{output} exists and is no picture of `ohem detect`: choose another --out")
    return outputs


def _check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    by_file = {(stat.st_dev, stat.st_ino): path for path in inputs if path.exists() for stat in [path.stat()]}
    for output in outputs:
        if output.exists():
            stat = output.stat()
            same = by_file.get((stat.st_dev, stat.st_ino))
            check_output(output, [same] if same else [])


def _images_of(path: Path) -> list[str]:
    """Returns the images in the detections.json of an earlier call; raises `InputError` where it is another file."""
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
    """A JSON list that grows in `file`, at `parts`, and is published as the valid file `path`."""

    def __init__(self, path: Path, parts: Path, file: BinaryIO) -> None:
        self.path = path
        self.parts = parts
        self.file = file
        self.count = 0
        self.size = self.published = 0  # bytes; a signal may interrupt any line
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
        with atomic_write(self.path) as temporary:
            shutil.copyfile(self.parts, temporary)
            os.truncate(temporary, size)
            with temporary.open("ab") as file:
                file.write(b"\n]\n")
        self.published = size
        ended = time.monotonic()
        self.next = ended + max(PUBLISH_SECONDS, SHARE * (ended - started))


@contextmanager
def _publishing(path: Path) -> Iterator[_Entries]:
    """Gives the list of a JSON file, and publishes it at the end, also after an error."""
    for file in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed process, since there is one writer
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


def _entry(path: Path, detections: dict[str, Tensor], classes: Sequence[str]) -> dict[str, Any]:
    labels = [classes[i - 1] for i in detections["labels"].tolist()]
    return {
        "image": str(path),
        "boxes": detections["boxes"].tolist(),
        "labels": labels,
        "scores": detections["scores"].tolist(),
    }


def _picture(name: str, image: Tensor, recipe: Recipe) -> ImagePyramid:
    shorts, long = sizes_to_test(recipe)
    return make_pyramid(name, image, _proposals(image, recipe.proposals), shorts=shorts, long=long)


def _proposals(image: Tensor, config: ProposalConfig) -> NDArray[np.float32]:
    """Returns (P, 4) boxes in pixels of `image`."""
    if config.mode == "none":
        return np.zeros((0, 4), np.float32)
    bgr = image.flip(0).permute(1, 2, 0).contiguous().numpy()
    return selective_search(bgr, config.mode, config.seed)[: config.top]

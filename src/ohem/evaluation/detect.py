"""`ohem detect`: detections in image files, as pictures and as JSON.

The images go through the network one after the other. Meanwhile processes make the proposals of the next ones, since
selective search takes longer than the network.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ohem.config.schema import ProposalConfig, Recipe, TestConfig
from ohem.data.loader import ImagePyramid, make_pyramid
from ohem.data.transforms import image_size, read_image
from ohem.detection.draw import draw_detections
from ohem.errors import InputError
from ohem.evaluation.detections_file import NAME, images_of, publishing
from ohem.evaluation.evaluate import detect_images, load_detector, of_processes
from ohem.images.read import read_comment
from ohem.inputs.examples import sizes_to_test
from ohem.inputs.proposals import methods_of
from ohem.io.files import atomic_write, check_output
from ohem.io.locks import locked
from ohem.proposals.methods import MethodUnion
from ohem.proposals.parallel import check_jobs, proposals_in_order
from ohem.proposals.windows import sliding_windows
from ohem.training.distributed import compute_shared, first_process_first

COMMENT = b"detections drawn by ohem"  # marks the JPEG files that a later call may overwrite
FEW_PIXELS = 500_000  # of all images: selective search takes about two seconds, and the start of processes one


def detect_files(
    run: Path,
    files: Sequence[Path],
    out: Path,
    score: float,
    test: TestConfig | None = None,
    jobs: int = -1,
    devices: str = "1",
) -> None:
    """Detects objects in `files` with the newest checkpoint of `run`; writes pictures and detections.json into `out`.

    The results do not depend on `jobs`, and memory does not grow with the number of images. The JSON file is a list
    with, per image, `image`, `boxes` ([x1, y1, x2, y2] in pixels), `labels` (names) and `scores`, highest first. It is
    valid at any time, and at most half a second behind.

    Args:
        run: folder of the run.
        files: image files.
        out: folder for the pictures, which have the names of the files, and detections.json.
        score: lowest score of a detection that is drawn.
        test: replaces the test options of the recipe.
        jobs: number of processes that make proposals; -1 uses all cores. With 1, or few pixels, this process does it.
        devices: number of processes that share the files, one for each GPU; the first one writes detections.json, at
            the end. With torchrun, the processes that it started.

    Raises:
        InputError: no file is given, two have the same name, one is no image, or a file of another program would be
            overwritten: then nothing is written. Or an image is damaged after its header, or a process is killed:
            then the images before it are done.
    """
    with of_processes(run, devices) as (fabric, accelerator), ExitStack() as stack:
        if not 0 <= score <= 1:
            raise InputError(f"--score {score} is out of range: give 0 to 1")
        check_jobs(jobs)
        outputs = _outputs(files, out)
        # A file that is no image is reported before anything is computed.
        pixels = sum(height * width for height, width in map(image_size, files))
        workers = min(jobs if jobs > 0 else cpu_count(), len(files)) if pixels > FEW_PIXELS else 1
        model, recipe, _ = load_detector(run, test, accelerator)
        model.to(fabric.device)
        out.mkdir(parents=True, exist_ok=True)
        publish = first_process_first(fabric, partial(_publisher, stack, out, fabric.is_global_zero))
        alone = fabric.world_size == 1  # then each image is published when it is done

        def detect(places: range) -> Iterator[dict[str, Any]]:
            own = [files[i] for i in places]
            images = _with_proposals(own, recipe.proposals, max(1, workers // fabric.world_size))
            with closing(images):
                for i, (image, proposals) in zip(places, images, strict=True):
                    (detections,) = detect_images(model, [_picture(str(files[i]), image, proposals, recipe)])
                    save_picture(draw_confident(image, detections, recipe.data.classes, score), outputs[i])
                    print(f"{outputs[i]}: {_count(detections['scores'], score)}", flush=True)
                    yield _entry(files[i], detections, recipe.data.classes)

        for entry in detect(range(len(files))) if alone else compute_shared(fabric, len(files), detect):
            publish(entry)


def _publisher(stack: ExitStack, out: Path, first: bool) -> Callable[[dict[str, Any]], None]:
    """Returns what adds an entry to detections.json, which only the first process does."""
    if not first:
        return lambda _: None
    stack.enter_context(locked(out / f".{NAME}.lock", f"the folder {out}"))
    return stack.enter_context(publishing(out / NAME)).append


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
    earlier = images_of(out / NAME)
    drawn = {Path(image).stem for image in earlier}
    for output in outputs:
        if output.exists() and output.stem not in drawn and not is_drawn(output):
            raise InputError(f"{output} exists and is no picture of `ohem detect`: choose another --out")
    return outputs


def _check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    by_file = {(stat.st_dev, stat.st_ino): path for path in inputs if path.exists() for stat in [path.stat()]}
    for output in outputs:
        if output.exists():
            stat = output.stat()
            same = by_file.get((stat.st_dev, stat.st_ino))
            check_output(output, [same] if same else [])


def is_drawn(path: Path) -> bool:
    """Returns whether `path` is a picture that `save_picture` wrote."""
    try:
        return read_comment(path) == COMMENT
    except InputError:
        return False


def _entry(path: Path, detections: dict[str, Tensor], classes: Sequence[str]) -> dict[str, Any]:
    labels = [classes[i - 1] for i in detections["labels"].tolist()]
    return {
        "image": str(path),
        "boxes": detections["boxes"].tolist(),
        "labels": labels,
        "scores": detections["scores"].tolist(),
    }


def _picture(name: str, image: Tensor, proposals: NDArray[np.float32], recipe: Recipe) -> ImagePyramid:
    shorts, long = sizes_to_test(recipe)
    return make_pyramid(name, image, proposals, shorts=shorts, long=long)


def _with_proposals(
    files: Sequence[Path], config: ProposalConfig, workers: int
) -> Generator[tuple[Tensor, NDArray[np.float32]], None, None]:
    """Yields each image with its proposals, (P, 4) boxes in pixels; some `workers` make those of the next images."""
    search = MethodUnion(methods_of(config), config.top)
    for method in search.methods:
        method.check()
    if not search.methods or workers == 1:
        for path in files:
            image = read_image(path)
            yield image, _proposals(image, search, config)
        return
    with proposals_in_order(files, search, workers) as proposals:
        for path, boxes in zip(files, proposals, strict=True):
            yield read_image(path), boxes


def _proposals(image: Tensor, search: MethodUnion, config: ProposalConfig) -> NDArray[np.float32]:
    """Returns (P, 4) boxes in pixels of `image`."""
    if "sliding" in config.mode:
        return sliding_windows((image.shape[1], image.shape[2]), config.windows)
    if not search.methods:
        return np.zeros((0, 4), np.float32)
    return search(as_bgr(image))


def as_bgr(image: Tensor) -> NDArray[np.uint8]:
    """Returns `image`, uint8 (3, H, W) in RGB, as `selective_search` takes it: (H, W, 3) in BGR."""
    bgr: NDArray[np.uint8] = image.flip(0).permute(1, 2, 0).contiguous().numpy()
    return bgr

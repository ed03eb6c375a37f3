"""Edge Boxes: the convention of their boxes, their file, and models that cannot be used."""

import gzip
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from benchmarks.scale.edge_forest import write_edge_forest

from ohem.errors import InputError
from ohem.proposals.boxes import fault_of_boxes
from ohem.proposals.edge_boxes import MOST, EdgeBoxes
from ohem.proposals.generate import cache_path, generate
from ohem.proposals.selective_search import FAST
from tests.proposals.conftest import picture
from tests.proposals.test_selective_search import iou


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_edge_forest(tmp_path_factory.mktemp("model") / "model.yml.gz")


def rectangle(height: int = 96, width: int = 128, factor: int = 1) -> np.ndarray:
    """Draws one red rectangle, (30, 20) to (80, 60) times `factor`, on grey: uint8 (H, W, 3), BGR."""
    image = np.full((height * factor, width * factor, 3), 50, np.uint8)
    image[20 * factor : 60 * factor, 30 * factor : 80 * factor] = (25, 25, 230)
    return image


def test_a_rectangle_is_among_the_best_boxes(model: Path) -> None:
    boxes = EdgeBoxes.of(model)(rectangle())
    assert boxes.dtype == np.float32
    assert 10 < len(boxes) <= MOST
    assert iou(boxes[:5], np.array([30, 20, 80, 60])).max() > 0.7
    assert fault_of_boxes(boxes, (96, 128)) is None


def test_a_wide_image_is_reduced_and_its_boxes_are_in_its_own_pixels(model: Path) -> None:
    small, large = rectangle(), rectangle(factor=4)
    np.testing.assert_array_equal(EdgeBoxes.of(model, 128)(large), 4 * EdgeBoxes.of(model)(small))
    for width in (0, 128, 500):
        np.testing.assert_array_equal(EdgeBoxes.of(model, width)(small), EdgeBoxes.of(model)(small))


def test_the_detector_gets_rgb_from_0_to_1(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: list[np.ndarray] = []
    real = cv2.ximgproc.createStructuredEdgeDetection(str(model))

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def detectEdges(self, image: np.ndarray) -> np.ndarray:
            pictures.append(image)
            edges: np.ndarray = real.detectEdges(image)
            return edges

    monkeypatch.setattr("ohem.proposals.edge_boxes._detector", lambda *_: Spy())
    EdgeBoxes.of(model)(rectangle())
    assert pictures[0].dtype == np.float32
    np.testing.assert_allclose(pictures[0][40, 50], np.array([230, 25, 25]) / 255, rtol=1e-6)


def test_the_same_boxes_whatever_ran_before_and_with_any_threads(model: Path) -> None:
    image, threads = rectangle(), cv2.getNumThreads()
    method = EdgeBoxes.of(model)
    try:
        cv2.setNumThreads(1)
        first = method(image)
        method(picture(1, 60, 80))
        cv2.setNumThreads(4)
        np.testing.assert_array_equal(method(image), first)
    finally:
        cv2.setNumThreads(threads)


@pytest.mark.parametrize("shape", [(1, 1), (2, 90), (90, 14), (3, 3), (40, 50)])
def test_small_and_flat_images_have_no_box(shape: tuple[int, int], model: Path) -> None:
    boxes = EdgeBoxes.of(model)(np.full((*shape, 3), 9, np.uint8))
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.float32


def test_patches_that_are_too_large_for_an_image_are_a_sentence(model: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.yml"
    large.write_text(gzip.decompress(model.read_bytes()).decode().replace("InnerSize: 4", "InnerSize: 32"))
    with pytest.raises(InputError, match=r"large\.yml cannot be used on an image of 24 x 20 pixels: name"):
        EdgeBoxes.of(large)(np.zeros((20, 24, 3), np.uint8))


def test_other_arrays_are_refused(model: Path) -> None:
    with pytest.raises(InputError, match=r"Edge Boxes takes uint8 \[H, W, 3\]"):
        EdgeBoxes.of(model)(np.zeros((4, 4), np.uint8))


def test_two_processes_make_the_file_of_one(images: dict[str, Path], path: Path, model: Path) -> None:
    method = EdgeBoxes.of(model)
    made = generate(images, path, method, jobs=1, progress=False)
    generate(images, path.with_name("two.safetensors"), method, jobs=2, progress=False)
    assert path.with_name("two.safetensors").read_bytes() == path.read_bytes()
    assert made.metadata == {
        "method": "edge boxes",
        "model": method.digest,
        "width": 0,
        "opencv": cv2.__version__,
    }
    assert len(made["a"]) > 0
    np.testing.assert_array_equal(made["a"], method(cv2.imread(str(images["a"]))))


def test_another_model_has_another_file(tmp_path: Path, model: Path) -> None:
    other = write_edge_forest(tmp_path / "other.yml.gz", threshold=0.5)
    names = {cache_path(tmp_path, "train", method).name for method in (FAST, EdgeBoxes.of(model), EdgeBoxes.of(other))}
    assert len(names) == 3
    assert "train.selective-search-fast.safetensors" in names
    assert f"train.edge-boxes-{EdgeBoxes.of(model).digest}.safetensors" in names
    copy = tmp_path / "copy.yml.gz"
    copy.write_bytes(model.read_bytes())
    assert EdgeBoxes.of(copy).name == EdgeBoxes.of(model).name


def damaged(content: bytes) -> dict[str, bytes]:
    """Returns files that are no model by what is wrong with them; at the last two OpenCV crashes."""
    text = gzip.decompress(content).decode()
    return {
        "empty": b"",
        "text": b"no model\n",
        "cut short": content[: len(content) // 2],
        "without its checksum": content[:-8],
        "another yaml": gzip.compress(b"%YAML:1.0\n---\na: 1\n"),
        "without nodes": gzip.compress(text.split("childs:")[0].encode()),
    }


@pytest.mark.parametrize(
    "fault", ["empty", "text", "cut short", "without its checksum", "another yaml", "without nodes"]
)
def test_a_file_that_is_no_model_is_a_sentence(
    fault: str, images: dict[str, Path], path: Path, model: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.yml.gz"
    wrong.write_bytes(damaged(model.read_bytes())[fault])
    with pytest.raises(InputError, match=r"wrong\.yml\.gz is damaged, or no model of .*: name OpenCV's model\.yml\.gz"):
        generate(images, path, EdgeBoxes.of(wrong), jobs=1, progress=False)
    assert not path.exists()


@pytest.mark.parametrize("name", ["", "absent.yml.gz"])
def test_a_model_that_is_not_there_is_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the model of Edge Boxes cannot be read .*--edge-model"):
        EdgeBoxes.of(tmp_path / name)


def test_workers_do_not_import_torch() -> None:
    code = "import sys, ohem.proposals.edge_boxes; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

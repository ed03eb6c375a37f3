"""The mining log: its rows by hand, its bounds and counts against all that was chosen, and its state."""

import copy
import math
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ohem.errors import InputError
from ohem.mining_log import COLUMNS, LoggedImage, MiningLog, is_state
from ohem.recorder import Recorder
from ohem.rois import RoIs
from ohem.samplers import AllSampler, Losses, OHEMSampler, RandomSampler
from tests.helpers.contracts import check_sampler
from tests.helpers.make_rois import make_rois
from tests.training.test_run_folder import DEAD

parquet = pytest.importorskip("pyarrow.parquet")


class Last:
    """A sampler that takes the last `count` RoIs, last first, and computes their losses."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, rois: RoIs, losses: Losses) -> Tensor:
        losses()
        return torch.arange(len(rois)).flip(0)[: self.count]


def mine(log: MiningLog, rois: RoIs, losses: list[float]) -> Tensor:
    return log(rois, lambda *_: torch.tensor(losses))


def example() -> RoIs:
    """Returns RoIs of two images of 100 x 50 pixels; the objects are in `TARGETS`."""
    boxes = [[0, 0, 10, 10], [20, 10, 40, 30], [50, 0, 60, 10], [10, 10, 30, 40]]
    return make_rois([0, 2, 0, 1], boxes=boxes, ious=[0.05, 0.8, 0.1, 1.0], images=[0, 0, 1, 1], num_images=2)


IMAGES = [
    LoggedImage("a", torch.tensor([[70.0, 0, 80, 10], [21, 10, 41, 30]]), scale=(2.0, 1.0)),
    LoggedImage("b", torch.tensor([[10.0, 10, 30, 40]]), scale=(0.5, 0.5), mirrored_width=200),
]


def test_rows_by_hand(tmp_path: Path) -> None:
    log = MiningLog(Last(3), tmp_path)
    log.begin_step(IMAGES, 7)
    mine(log, example(), [1.0, 2.0, 0.5, 0.25])
    rows = log.tables()["rows"]
    assert tuple(rows) == tuple(COLUMNS)
    assert {name: rows[name] for name in ("step", "image", "label", "object", "loss", "taken_for")} == {
        "step": [7, 7, 7],
        "image": ["b", "b", "a"],
        "label": [1, 0, 2],
        "object": [0, -1, 1],
        "loss": [0.25, 0.5, 2.0],
        "taken_for": [-1, -1, -1],
    }
    # Image b is mirrored: 200 - 30 / 0.5 = 140. Image a is twice as wide as its picture.
    assert list(zip(*(rows[side] for side in ("x1", "y1", "x2", "y2")), strict=True)) == [
        (140, 20, 180, 80),
        (80, 0, 100, 20),
        (10, 10, 20, 30),
    ]
    assert rows["iou"] == pytest.approx([1.0, 0.1, 0.8])
    assert all(math.isnan(score) for score in rows["taken_score"])


def test_counts_by_hand(tmp_path: Path) -> None:
    log = MiningLog(Last(3), tmp_path)
    for _ in range(2):
        log.begin_step(IMAGES)
        mine(log, example(), [1.0, 2.0, 0.5, 0.25])
    tables = log.tables()
    assert tables["images"] == {
        "image": ["a", "a", "a", "b", "b"],
        "object": [-1, 0, 1, -1, 0],
        "visits": [2, 2, 2, 2, 2],
        "mined": [0, 0, 2, 2, 2],
        "chosen": [0, 0, 2, 2, 2],
        "loss": [0, 0, 4.0, 1.0, 0.5],
    }
    assert tables["periods"] == {
        "first_step": [1, 2],
        "steps": [1, 1],
        "minable": [4, 4],
        "chosen": [3, 3],
        "loss": [2.75, 2.75],
        "ious": [[0, 1, 0, 0, 0, 0, 0, 0, 1, 1]] * 2,
        "labels": [[1, 1, 1]] * 2,
    }


def test_two_mini_batches_may_be_one_step(tmp_path: Path) -> None:
    log = MiningLog(AllSampler(), tmp_path)
    for step in (1, 1, 2):
        log.begin_step(IMAGES, step)
        log(example(), lambda *_: torch.zeros(4))
    assert log.tables()["periods"]["steps"] == [1, 1]
    assert log.tables()["periods"]["chosen"] == [8, 4]


def test_an_object_is_mined_once_in_a_visit(tmp_path: Path) -> None:
    """Three RoIs are chosen for the object in the first visit, and none in the second."""
    log = MiningLog(Last(3), tmp_path)
    for labels in ([0, 1, 1, 1], [1, 0, 0, 0]):
        log.begin_step([LoggedImage("a", torch.tensor([[0.0, 0, 70, 70]]))])
        mine(log, make_rois(labels), [0.0] * 4)
    images = log.tables()["images"]
    assert [images[name] for name in ("object", "visits", "mined", "chosen")] == [[-1, 0], [2, 2], [1, 1], [3, 3]]


def test_images_without_names_have_their_place(tmp_path: Path) -> None:
    log = MiningLog(AllSampler(), tmp_path)
    log(example(), lambda *_: torch.zeros(4))
    log(example(), lambda *_: torch.zeros(4))
    tables = log.tables()
    assert tables["rows"]["image"] == ["0", "0", "1", "1"] * 2
    assert tables["rows"]["step"] == [1] * 4 + [2] * 4
    assert tables["rows"]["object"] == [-1] * 8  # the objects are not known
    assert tables["rows"]["placed"] == [0] * 8
    assert tables["images"]["chosen"] == [2, 2]  # background, and no object


def run(log: MiningLog, steps: int, first: int = 1) -> list[tuple[int, str, float]]:
    """Logs the steps from `first` on. Returns step, image and loss of everything that was chosen."""
    rng = torch.Generator().manual_seed(0)
    rows = []
    for step in range(1, steps + 1):
        names = [f"image{(step * 2 + i) % 30}" for i in range(2)]
        losses = torch.rand(12, generator=rng) * (10 if step == 100 else 1)
        if step >= first:
            log.begin_step(names, step)
            rois = make_rois([0, 1] * 6, images=[0] * 6 + [1] * 6, num_images=2)
            chosen = log(rois, lambda *_, losses=losses: losses)  # type: ignore[misc]
            rows += [(step, names[int(i) // 6], float(losses[i])) for i in chosen]
    return rows


def long_log(path: Path, steps: int, size: int = 64) -> tuple[MiningLog, list[tuple[int, str, float]]]:
    """Returns a log of `steps` steps, and step, image and loss of everything that was chosen."""
    log = MiningLog(Last(8), path, size)
    return log, run(log, steps)


def test_the_size_is_bounded_the_newest_and_hardest_are_kept_and_the_counts_are_exact(tmp_path: Path) -> None:
    log, everything = long_log(tmp_path, 400)
    tables = log.tables()
    rows = tables["rows"]
    kept = list(zip(rows["step"], rows["image"], rows["loss"], strict=True))
    assert 64 < len(kept) <= 3 * 64
    assert kept[-64:] == everything[-64:]
    by_loss = sorted(everything, key=lambda row: -row[2])
    assert set(by_loss[:64]) <= set(kept)
    period = log._periods.length
    assert period == 8  # 400 steps in at most 64 periods
    hardest: dict[int, float] = {}
    for step, _, loss in everything:
        hardest[(step - 1) // period] = max(loss, hardest.get((step - 1) // period, 0))
    assert set(hardest.values()) <= {loss for _, _, loss in kept}
    assert sum(tables["periods"]["steps"]) == 400
    assert sum(tables["periods"]["chosen"]) == 3200
    assert sum(tables["periods"]["loss"]) == pytest.approx(sum(loss for _, _, loss in everything))
    counts = Counter(image for _, image, _ in everything)
    background = {i: n for i, o, n in zip(*(tables["images"][c] for c in ("image", "object", "chosen")), strict=True)}
    assert background == {image: count // 2 for image, count in counts.items()}  # half is foreground, of no object


def test_a_state_continues_exactly(tmp_path: Path) -> None:
    whole, _ = long_log(tmp_path / "whole", 120)
    part, _ = long_log(tmp_path / "part", 50)
    resumed = MiningLog(Last(8), tmp_path / "resumed", 64)
    state = copy.deepcopy(part.state_dict())
    resumed.load_state_dict(state)
    run(resumed, 120, first=51)
    assert repr(resumed.tables()) == repr(whole.tables())
    assert repr(part.state_dict()) == repr(state)  # loading shares no tensor that is changed


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Each process has one of the two images of every step."""
    one = MiningLog(AllSampler(), tmp_path)
    two = [MiningLog(AllSampler(), tmp_path) for _ in range(2)]
    for step in range(1, 101):
        names = [f"image{step % 3}", f"image{step % 3 + 3}"]
        rois = make_rois([0, 1, 0, 2], images=[0, 0, 1, 1], num_images=2)
        one.begin_step(names, step)
        one(rois, lambda *_: torch.zeros(4))
        for log, name in zip(two, names, strict=True):
            log.begin_step([name], step)
            log(make_rois([0, 1 if log is two[0] else 2]), lambda *_: torch.zeros(2))
    first, second = two
    first.merge(second.state_dict())
    assert first.tables()["periods"] == one.tables()["periods"]
    for name in ("rows", "images"):
        ours, theirs = (
            sorted(zip(*(table[c] for c in ("image", "visits", "chosen") if c in table), strict=True))
            for table in (first.tables()[name], one.tables()[name])
        )
        assert ours == theirs
    second.clear()
    assert second.tables()["rows"]["step"] == []


@pytest.mark.parametrize("ascending", [False, True])
def test_what_rois_are_taken_for(tmp_path: Path, ascending: bool) -> None:
    layer = nn.Identity()
    log = MiningLog(Last(2), tmp_path)
    log.watch(layer, ascending=ascending)
    mine(log, make_rois([0, 0, 2]), [0.0, 1.0, 2.0])  # takes 2, then 1
    scores = torch.tensor([[0.0, 1.0, 9.0], [5.0, 3.0, 4.0]], requires_grad=True)  # of labels 2 and 0
    with torch.no_grad():
        layer(scores.flip(0))  # the read-only pass
    layer(torch.zeros(3, 3))  # of another number of RoIs
    layer(scores.flip(0) if ascending else scores)
    rows = log.tables()["rows"]
    assert rows["label"] == [2, 0]
    assert rows["taken_for"] == [1, 2]
    assert rows["taken_score"] == pytest.approx([1 / (1 + math.exp(-1) + math.exp(8)), 1 / (1 + math.e + 1 / math.e)])


def test_the_files_are_the_tables(tmp_path: Path) -> None:
    log, _ = long_log(tmp_path / "log", 20)
    log.save()
    for name, columns in log.tables().items():
        assert repr(parquet.read_table(tmp_path / "log" / f"{name}.parquet").to_pydict()) == repr(columns)
    log.save()  # its own files are replaced
    other, _ = long_log(tmp_path / "log", 20)
    with pytest.raises(FileExistsError, match="the mining log of another training"):
        other.save()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".rows.parquet.{DEAD}.tmp"
    left.touch()
    MiningLog(OHEMSampler(2), tmp_path).save()
    assert not left.exists()
    assert (tmp_path / "rows.parquet").exists()


def test_saving_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r'the mining log needs PyArrow: pip install "ohem\[train\]"'):
        MiningLog(AllSampler(), tmp_path).save()


def test_a_log_is_a_recorder_and_a_sampler(tmp_path: Path) -> None:
    log = MiningLog(OHEMSampler(8), tmp_path)
    check_sampler(log)
    log(example(), lambda *_: torch.arange(4.0))
    assert log.statistics()["chosen"] == 4
    for copied in (copy.deepcopy(log), pickle.loads(pickle.dumps(log))):
        assert type(copied) is Recorder  # two logs must not write the same files
        assert copied.sampler.batch_size == 8


def test_a_sampler_without_losses_keeps_the_newest(tmp_path: Path) -> None:
    log = MiningLog(RandomSampler(4), tmp_path, 64)
    for _ in range(60):
        log(example(), lambda *_: torch.zeros(4))
    rows = log.tables()["rows"]
    assert len(rows["step"]) == 64
    assert all(math.isnan(loss) for loss in rows["loss"])


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size must be"):
        MiningLog(AllSampler(), tmp_path, 8)
    log = MiningLog(AllSampler(), tmp_path)
    with pytest.raises(ValueError, match="step must be"):
        log.begin_step(["a"], 0)
    with pytest.raises(TypeError, match="images must be"):
        log.begin_step("a")
    log.begin_step(["a"])
    with pytest.raises(ValueError, match="begin_step must get the 2 images of the mini-batch, not 1"):
        log(example(), lambda *_: torch.zeros(4))


def test_states_are_recognised(tmp_path: Path) -> None:
    state = long_log(tmp_path, 10)[0].state_dict()
    assert is_state(state)
    assert not is_state(None)
    for key in state:
        assert not is_state({k: v for k, v in state.items() if k != key})
        if key != "step":
            assert not is_state({**state, key: "damaged"})
    assert not is_state({**state, "rows": state["rows"][:, :5]})

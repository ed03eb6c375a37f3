"""torchvision's R-CNN detectors with mining are used as before: state, copies, builders, training loops, processes."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.roi_heads import RoIHeads

from ohem import AllSampler, OHEMSampler, RatioSampler, RoIs, RoISampler, with_ohem
from ohem.integrations.rcnn import OHEMRoIHeads
from ohem.recorder import Recorder
from tests.helpers.contracts import EVERY_SAMPLER, TrainedDetector, check_detector
from tests.helpers.tiny_rcnn import BATCHES, CLASSES, MODELS, faster_rcnn, mini_batch, normalised_rcnn, step

WITHOUT_MINING: dict[Callable[[], FasterRCNN], dict[str, TrainedDetector]] = {}


@pytest.mark.parametrize(
    ("make", "sampler"),
    [
        *(pytest.param(faster_rcnn, sampler, id=f"faster-{name}") for name, sampler in EVERY_SAMPLER.items()),
        *(pytest.param(make, OHEMSampler(8), id=f"{name}-ohem") for name, make in MODELS.items() if name != "faster"),
    ],
)
def test_contract_of_a_detector(make: Callable[[], FasterRCNN], sampler: RoISampler) -> None:
    check_detector(make, sampler, BATCHES, WITHOUT_MINING.setdefault(make, {}))


def test_features_are_deleted_after_the_step() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    before = set(vars(model.roi_heads))
    step(model, BATCHES["usual"])
    assert set(vars(model.roi_heads)) == before

    def fail(rois: RoIs, losses: Callable[[], Tensor]) -> Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        step(with_ohem(model, fail), BATCHES["usual"])
    assert set(vars(model.roi_heads)) == before


def test_validation_losses() -> None:
    """Runs in train mode without gradient, as many users do."""
    model = with_ohem(normalised_rcnn(), OHEMSampler(8))
    with torch.no_grad():
        assert sum(model(*BATCHES["usual"]).values()).isfinite()


def test_second_call_replaces_the_sampler() -> None:
    model = with_ohem(with_ohem(faster_rcnn(), OHEMSampler(8)), AllSampler())
    expected, _ = step(with_ohem(faster_rcnn(), AllSampler()), BATCHES["usual"])
    assert step(model, BATCHES["usual"])[0] == expected
    assert model.mining is model.roi_heads.mining
    assert isinstance(model.mining.sampler, AllSampler)


def test_recorder_of_the_user_is_used() -> None:
    recorder = Recorder(OHEMSampler(8))
    model = with_ohem(faster_rcnn(), recorder)
    step(model, BATCHES["usual"])
    assert model.mining is recorder
    assert recorder.statistics()["survivors"] >= 8


def test_copy_trains_independently() -> None:
    """An average of weights is such a copy."""
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    twin = copy.deepcopy(model)
    step(twin, BATCHES["one object"])
    assert model.mining.statistics() == {}
    assert twin.mining is twin.roi_heads.mining
    assert twin.mining.statistics()["chosen"] == 8


def test_class_of_the_model_does_not_change() -> None:
    model = with_ohem(faster_rcnn(), OHEMSampler(8))
    assert type(model) is FasterRCNN
    assert isinstance(model.roi_heads, RoIHeads)
    assert type(pickle.loads(pickle.dumps(model)).roi_heads) is OHEMRoIHeads


@pytest.mark.parametrize(
    "build",
    [
        detection.fasterrcnn_resnet50_fpn,
        detection.fasterrcnn_resnet50_fpn_v2,
        detection.fasterrcnn_mobilenet_v3_large_fpn,
        detection.fasterrcnn_mobilenet_v3_large_320_fpn,
        detection.maskrcnn_resnet50_fpn,
        detection.maskrcnn_resnet50_fpn_v2,
        detection.keypointrcnn_resnet50_fpn,
    ],
    ids=lambda build: build.__name__,
)
def test_every_builder_of_torchvision(build: Callable[..., FasterRCNN]) -> None:
    with torch.device("meta"):  # allocates no weights
        model = build(weights=None, weights_backbone=None)
    names = list(model.state_dict())
    assert type(with_ohem(model, OHEMSampler(128)).roi_heads) is OHEMRoIHeads
    assert list(model.state_dict()) == names


def test_training_loop_of_torchvisions_references() -> None:
    """Runs a warm-up, the steps of `train_one_epoch` and a checkpoint. The loss decreases."""
    torch.manual_seed(0)
    build = partial(
        detection.fasterrcnn_mobilenet_v3_large_320_fpn, weights=None, weights_backbone=None, num_classes=CLASSES
    )
    sizes = {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_train": 100}
    model = with_ohem(build(**sizes), OHEMSampler(batch_size=16))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=3)
    totals = []
    model.train()
    for _ in range(6):
        images, targets = BATCHES["usual"]
        loss_dict = model(list(images), [dict(target) for target in targets])
        losses = sum(loss for loss in loss_dict.values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        warm_up.step()
        totals.append(losses.item())
    assert totals[-1] < totals[0]
    assert model.mining.statistics()["chosen"] <= 32
    plain = build(**sizes)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert len(plain.eval()(BATCHES["usual"][0])) == 2


def _process(rank: int, folder: str) -> None:
    """Trains on its own images. In the first step, one process has no object, and the other has more chunks.

    The RPN of the process without an object has no anchor to train on.
    """
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ratio = RatioSampler(min_negatives=0)
    model = with_ohem(normalised_rcnn(), OHEMSampler(8, per_image=False), rpn_sampler=ratio)
    model.roi_heads.chunk = 100 if rank == 0 else 10
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.01)
    for number, objects in enumerate([(2, 3 * rank), (1, 2)]):
        optimizer.zero_grad()
        sum(parallel(*mini_batch(objects if rank else (0, 0), seed=2 * number + rank)).values()).backward()
        assert (len(model.rpn.mining.chosen) > 0) == (rank > 0)
        optimizer.step()
    # Buffers are not compared: DDP copies those of the first process only at the next step.
    weights = {name: p.detach() for name, p in model.named_parameters()}
    torch.save((weights, model.mining.statistics()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_same_weights(tmp_path: Path) -> None:
    start_processes(_process, (str(tmp_path),), 2, start_method="forkserver")
    (weights, numbers), (others, other_numbers) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    before = dict(normalised_rcnn().named_parameters())
    assert weights.keys() == others.keys() == before.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name
        assert not torch.equal(weight, before[name]), name
    assert (numbers["chosen"], other_numbers["chosen"]) == (16, 16)
    assert numbers["foreground"] == 0 < other_numbers["foreground"]

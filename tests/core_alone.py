"""Uses every public name of `ohem` in a process in which the packages of the extras cannot be imported.

Run it as `python -m tests.core_alone`.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from ohem.extras import EXTRAS

# Packages that the extras bring, and packages of other frameworks.
BLOCKED = {*EXTRAS, "monai", "pytorch_lightning", "segmentation_models_pytorch", "transformers", "ultralytics"}


class Blocker(MetaPathFinder, Loader):
    """Makes the import of a package of `BLOCKED` fail, as if it were not installed."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        # torch searches for some packages without importing them, so the failure must come later.
        return ModuleSpec(fullname, self) if fullname.split(".")[0] in BLOCKED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: there is no module to execute."""


def use_every_public_name() -> set[str]:
    """Trains a step with every sampler in both kinds of detectors; returns the names that were used."""
    import torch
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    import ohem
    from ohem.detection.backbones import tiny

    torch.manual_seed(0)
    samplers = [name for name in ohem.__all__ if name.endswith("Sampler") and name != "RoISampler"]
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)]
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}]
    corners = torch.rand(60, 2).repeat(1, 2) * 40 + torch.tensor([0.0, 0.0, 20.0, 20.0])
    for name in samplers:
        kind = getattr(ohem, name)
        whole = name in ("AllSampler", "RatioSampler", "NoiseAwareSampler")  # these have no batch size
        sampler: ohem.RoISampler = ohem.Recorder(kind() if whole else kind(8))
        model = ohem.FastRCNN(tiny(), num_classes=2, sampler=sampler)
        sum(model(images, [corners], targets).values()).backward()
    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    detector = ohem.with_ohem(detector, ohem.OHEMSampler(8, nms_iou=None))
    sum(detector([images[0] / 255, images[0] / 255], targets * 2).values()).backward()
    rois = ohem.match([corners], targets)
    assert isinstance(rois, ohem.RoIs)
    losses, groups = torch.rand(60), torch.zeros(60, dtype=torch.int64)
    assert torch.equal(ohem.hard_examples(losses, 5), ohem.hard_rois(losses, corners, groups, 5, nms_iou=None))
    near = ohem.hard_negatives(corners[:5], corners[:5], corners, 2)
    assert ohem.triplet_losses(corners[:5], corners[:5], corners[near]).shape == near.shape == (5, 2)
    ohem.OHEMLoss(torch.nn.CrossEntropyLoss(reduction="none"))(torch.randn(8, 3), torch.randint(3, (8,)))
    log = ohem.MiningLog(ohem.AllSampler(), "unused")
    log.begin_step([ohem.LoggedImage("image", targets[0]["boxes"])])
    log(rois, lambda: torch.zeros(len(rois)))
    assert log.tables()["images"]["visits"] == [1, 1]
    assert issubclass(ohem.InputError, ValueError)
    used = {
        "FastRCNN",
        "InputError",
        "LoggedImage",
        "MiningLog",
        "OHEMLoss",
        "Recorder",
        "RoIs",
        "RoISampler",
        "with_ohem",
        "match",
    }
    return used | {"hard_examples", "hard_negatives", "hard_rois", "triplet_losses", *samplers}


if __name__ == "__main__":
    sys.meta_path.insert(0, Blocker())
    print(*sorted(use_every_public_name()))

"""Narrow detection models of ultralytics with two mini-batches, without the user's settings and without the network."""

import atexit
import os
import shutil
import tempfile
from typing import Any

_SETTINGS = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _SETTINGS, ignore_errors=True)
ENVIRONMENT = {"YOLO_CONFIG_DIR": _SETTINGS, "YOLO_OFFLINE": "1"}
os.environ.update(ENVIRONMENT)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.nn.tasks import DetectionModel, yaml_model_load  # noqa: E402

KINDS = ("yolov8", "yolo11", "yolo26")
CLASSES, SIZE = 3, 64


def architecture(kind: str) -> dict[str, Any]:
    """Returns the YAML of `kind`, such as yolo11, with few channels and classes."""
    return {**yaml_model_load(f"{kind}n.yaml"), "nc": CLASSES, "scales": {"n": [0.25, 0.125, 1024]}, "scale": "n"}


def make(kind: str = "yolo11") -> Any:
    """Returns the model in train mode, with the same weights at each call."""
    torch.manual_seed(0)
    model = DetectionModel(architecture(kind), verbose=False)
    model.args = get_cfg()
    return model.train()


def batch(name: str = "two images") -> dict[str, Tensor]:
    """Returns a mini-batch of two images as the trainer makes it; in "one object" the first image has none."""
    boxes = torch.tensor([[0.3, 0.3, 0.3, 0.4], [0.6, 0.6, 0.7, 0.6], [0.5, 0.5, 0.4, 0.4]])
    keep = {"two images": [0, 1, 2], "one object": [2], "no object": []}[name]
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    numbers = {"batch_idx": torch.tensor([0.0, 0, 1])[keep], "cls": torch.tensor([[0.0], [1], [2]])[keep]}
    return {"img": images, **numbers, "bboxes": boxes[keep]}


def leaves(outputs: Any) -> tuple[Any, list[Tensor]]:
    """Returns the outputs of a model in train mode as leaves of autograd, and the leaves (N, channels, A)."""
    if "feats" not in outputs:
        heads = {name: leaves(head) for name, head in outputs.items()}
        return {name: head[0] for name, head in heads.items()}, [leaf for head in heads.values() for leaf in head[1]]
    tensors = {name: outputs[name].detach().clone().requires_grad_() for name in ("boxes", "scores")}
    return {**outputs, **tensors}, list(tensors.values())

"""The pre-training of the demo's network, which learns to classify single digits before it learns to detect them.

The paper's networks are pre-trained on ImageNet. Without it, the demo would need four times the training.
"""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.ops import roi_pool

from ohem.data.synthetic import CLASSES, draw_digits
from ohem.detection.backbones import Backbone
from ohem.detection.backbones.tiny import tiny
from ohem.io.files import atomic_write
from ohem.io.progress import tracked

STEPS = 300
"""Number of mini-batches, unless the trainings are shorter."""
DIGITS, BATCH = 1600, 24
"""Number of digits, and of those in a mini-batch."""
LR = 0.002


def pretrain(path: Path, steps: int) -> None:
    """Trains the network for `steps` mini-batches and writes its weights to `path`, .safetensors.

    It takes half a minute on one core. An existing file is kept, since runs may have begun with it.
    """
    if path.exists():
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = _train(steps)
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({name: value.contiguous() for name, value in backbone.state_dict().items()}))


def _train(steps: int) -> Backbone:
    drawn = draw_digits(min(DIGITS, steps * BATCH))
    images, boxes, labels = (torch.from_numpy(part) for part in drawn)
    images = images.permute(0, 3, 1, 2)
    backbone = tiny()
    classifier = nn.Linear(backbone.dim, len(CLASSES))
    optimizer = torch.optim.Adam([*backbone.parameters(), *classifier.parameters()], lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=0.2)
    for _ in tracked(range(steps), "pre-training on single digits", unit="steps"):
        batch = torch.randint(len(images), (BATCH,))
        scores = classifier(_features(backbone, images[batch], boxes[batch]))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(scores, labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return backbone


def _features(backbone: Backbone, images: Tensor, boxes: Tensor) -> Tensor:
    """Computes the features (B, D) of one box (B, 4) in each image, moved and resized by up to a tenth of its sides."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes + 0.2 * (torch.rand_like(boxes) - 0.5) * sides
    pooled = roi_pool(backbone(list(images)), list(boxes[:, None]), backbone.pool_size, 1 / backbone.stride)
    features: Tensor = backbone.roi_head(pooled)
    return features

"""RoIs for tests, of given labels or at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ohem.rois import RoIs


def make_rois(
    labels: Sequence[int],
    *,
    boxes: Sequence[Sequence[float]] | None = None,
    ious: Sequence[float] | None = None,
    images: Sequence[int] | None = None,
    num_images: int = 1,
) -> RoIs:
    """Returns RoIs of these labels.

    The default boxes are 10 x 10 pixels and do not touch; the default IoU is 1 for foreground and 0 for background.
    """
    n = len(labels)
    start = 20.0 * torch.arange(n)[:, None]
    separate = start + torch.tensor([0.0, 0.0, 10.0, 10.0])
    classes = torch.tensor(labels, dtype=torch.int64)
    return RoIs(
        boxes=separate if boxes is None else torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
        images=torch.zeros(n, dtype=torch.int64) if images is None else torch.tensor(images, dtype=torch.int64),
        labels=classes,
        targets=torch.zeros(n, 4),
        ious=(classes > 0).float() if ious is None else torch.tensor(ious, dtype=torch.float32),
        num_images=num_images,
    )


def random_boxes(n: int, rng: torch.Generator, height: int = 96, width: int = 128) -> Tensor:
    """Returns (n, 4) boxes of whole pixels inside an image, with sides of 12 to 63 pixels."""
    side = torch.randint(12, 64, (n, 2), generator=rng).float()
    room = torch.tensor([width, height]) - side
    start = (torch.rand(n, 2, generator=rng) * room).floor()
    return torch.cat([start, start + side], dim=1)


def random_target(rng: torch.Generator, classes: int, objects: int = 3, ignored: int = 0) -> dict[str, Tensor]:
    """Returns a target for `match`: `objects` boxes, the last `ignored` of which are to be ignored."""
    return {
        "boxes": random_boxes(objects, rng),
        "labels": torch.randint(1, classes + 1, (objects,), generator=rng),
        "ignore": torch.arange(objects) >= objects - ignored,
    }


def near(target: dict[str, Tensor], n: int, rng: torch.Generator, height: int = 96, width: int = 128) -> Tensor:
    """Returns (n, 4) proposals: half are objects with every side moved by up to 4 pixels, half lie anywhere."""
    which = torch.randint(0, len(target["boxes"]), (n // 2,), generator=rng)
    moved = target["boxes"][which] + torch.randint(-4, 5, (n // 2, 4), generator=rng)
    inside = moved.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    return torch.cat([inside, random_boxes(n - n // 2, rng, height, width)])

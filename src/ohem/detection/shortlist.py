"""A shortlist for the read-only pass: the RoIs that were hardest when their image was last trained on.

Proposals are fixed, so a RoI has a loss from the last visit of its image. Loshchilov and Hutter (2016, "Online Batch
Selection for Faster Training of Neural Networks") rank training examples by such losses.

Shapes: R: RoIs of the mini-batch   S: RoIs of the shortlist   P: RoIs of one image
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ohem.checks import check_integer
from ohem.mining import hard_examples
from ohem.rois import RoIs
from ohem.samplers import Losses

ROUND = 8
"""Visits of an image in which every RoI is seen at least once."""
LARGEST = torch.finfo(torch.float16).max


class Visit(NamedTuple):
    """What is remembered of an image."""

    losses: Tensor
    """(P,) float16 on the CPU, the loss of each RoI when it was last seen."""
    number: int
    """Number of visits so far."""


class Shortlist:
    """Remembers the losses of the RoIs of each image, and shortens the RoIs that the read-only pass sees.

    The first visit of an image sees all of its RoIs. A later visit sees the `size` hardest by the losses remembered,
    and a random eighth of the others, another eighth each time.

    Args:
        size: number of the hardest RoIs of an image that each visit sees.

    Raises:
        TypeError, ValueError: `size` is not an integer of at least 1.
    """

    def __init__(self, size: int) -> None:
        check_integer("size", size, 1)
        self.size = size
        self.visits: dict[int, Visit] = {}
        """`image_id` -> what is remembered of the image."""
        self._changed: set[int] = set()

    def __call__(self, rois: RoIs, targets: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Callable[[Losses], Losses]]:
        """Chooses the RoIs of a mini-batch that are ranked.

        Args:
            rois: R RoIs of N images.
            targets: N dicts with `image_id`, an integer that is another one for each image of the data set.

        Returns:
            (S,) int64, ascending indices of RoIs, and a function: it makes the losses of these RoIs be remembered when
            they are computed.

        Raises:
            ValueError: a target has no `image_id`.
        """
        images = [_image_id(target, f"targets[{i}]") for i, target in enumerate(targets)]
        own = [(rois.images == i).nonzero().squeeze(1) for i in range(len(images))]
        seen = [self._to_see(image, len(rows)) for image, rows in zip(images, own, strict=True)]
        kept = torch.cat([rows[mask.to(rows.device)] for rows, mask in zip(own, seen, strict=True)])

        def remembered(losses: Losses) -> Losses:
            def compute(cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
                values = losses(cls_weight, box_weight)
                parts = torch.split(values.cpu(), [int(mask.sum()) for mask in seen])
                for image, mask, part in zip(images, seen, parts, strict=True):
                    self._remember(image, mask, part)
                self._changed.update(images)
                return values

            return compute

        return kept, remembered

    def _to_see(self, image: int, count: int) -> Tensor:
        """Returns (count,) bool, the RoIs of an image that its next visit sees."""
        visit = self.visits.get(image)
        if visit is None or len(visit.losses) != count:
            return torch.ones(count, dtype=torch.bool)
        turns = torch.randint(ROUND, (count,), generator=torch.Generator().manual_seed(image))
        mask = turns == visit.number % ROUND
        mask[hard_examples(visit.losses, self.size)] = True
        return mask

    def _remember(self, image: int, mask: Tensor, losses: Tensor) -> None:
        visit = self.visits.get(image)
        new = torch.zeros(len(mask), dtype=torch.float16) if visit is None or mask.all() else visit.losses.clone()
        # A loss that is not a number is seen again.
        new[mask] = losses.float().nan_to_num(LARGEST).clamp(max=LARGEST).half()
        self.visits[image] = Visit(new, 1 if visit is None else visit.number + 1)

    def take_updates(self) -> dict[int, Visit]:
        """Returns what has changed since the last call, for the other processes of a training."""
        changed, self._changed = self._changed, set()
        return {image: self.visits[image] for image in changed}

    def state_dict(self) -> dict[str, Tensor]:
        """Returns all that is remembered: `images`, `counts` and `lengths` (I,) int64, and `losses` float16."""
        losses = [visit.losses for visit in self.visits.values()]
        return {
            "images": torch.tensor(list(self.visits), dtype=torch.int64),
            "counts": torch.tensor([visit.number for visit in self.visits.values()], dtype=torch.int64),
            "lengths": torch.tensor([len(values) for values in losses], dtype=torch.int64),
            "losses": torch.cat([torch.zeros(0, dtype=torch.float16), *losses]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces all that is remembered by a `state_dict`."""
        losses = torch.split(state["losses"], state["lengths"].tolist())
        rows = zip(state["images"].tolist(), losses, state["counts"].tolist(), strict=True)
        self.visits = {image: Visit(values.clone(), count) for image, values, count in rows}


def _image_id(target: Mapping[str, Any], name: str) -> int:
    try:
        return int(target["image_id"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{name} needs an `image_id`, an integer, since the losses of each image are remembered: add it, or leave "
            "out the shortlist"
        ) from None

"""What is written where the loss is not finite, for the user to see."""

from collections.abc import Sequence

import torch

from ohem.data.loader import Example
from ohem.recorder import Recorder


def evidence(recorder: Recorder, step: int, examples: Sequence[Example]) -> dict[str, object]:
    """Returns images and RoIs of a pass whose loss is not finite, for JSON; boxes in resized pixels."""
    rois = recorder.rois
    rows = [] if rois is None else torch.cat([rois.images[:, None], rois.labels[:, None], rois.boxes], dim=1).tolist()
    return {
        "step": step,
        "images": [e.id for e in examples],
        "scales": [e.scale for e in examples],
        "columns": ["image", "label", "x1", "y1", "x2", "y2"],
        "rois": rows,
        "chosen": [] if recorder.chosen is None else recorder.chosen.tolist(),
        "losses": [] if recorder.losses is None else [str(value) for value in recorder.losses.tolist()],
    }

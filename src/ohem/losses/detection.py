"""The detection loss of Fast R-CNN (paper, section 3.1), per RoI and over a mini-batch.

Shapes: R: RoIs   K: foreground classes
"""

import torch
from torch import Tensor
from torch.nn import functional

from ohem.rois import RoIs


def roi_losses(scores: Tensor, deltas: Tensor, rois: RoIs, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Classification and box-regression loss of each RoI.

    Args:
        scores: (R, K + 1) logits.
        deltas: (R, K + 1, 4) normalised box regressions, one per class.
        rois: the R RoIs that they belong to.
        beta: of smooth L1, the difference from which on it is linear.

    Returns:
        `loss_classifier` (R,): log loss, from `log_softmax` in float32 so that the hardest RoIs do not tie, 0 where the
        label is -1; `loss_box_reg` (R,): smooth L1 summed over the four coordinates, 0 but for foreground.
    """
    loss_classifier = functional.cross_entropy(scores.float(), rois.labels, reduction="none", ignore_index=-1)
    own = deltas.float()[torch.arange(len(rois), device=deltas.device), rois.labels.clamp(min=0)]
    loss_box_reg = functional.smooth_l1_loss(own, rois.targets, beta=beta, reduction="none").sum(dim=1)
    return loss_classifier, torch.where(rois.foreground, loss_box_reg, 0)


def weighted(losses: tuple[Tensor, Tensor], classifier: float = 1.0, box_reg: float = 1.0) -> Tensor:
    """The sum (R,) of the two losses that `roi_losses` gives, with these weights."""
    return classifier * losses[0] + box_reg * losses[1]


def detection_loss(scores: Tensor, deltas: Tensor, rois: RoIs, chosen: Tensor | None = None) -> dict[str, Tensor]:
    """Mean losses over the RoIs trained on, background included; the two add up to the loss of the paper (weights 1:1).

    Args:
        scores, deltas, rois: as for `roi_losses`; a RoI labelled -1 counts, with a loss of 0.
        chosen: int64 indices of the RoIs to train on: the others have no loss and no gradient. None: all of them.

    Returns:
        `loss_classifier` and `loss_box_reg`, scalars, divided by the actual number of RoIs trained on; 0 (with a graph)
        where there is none.
    """
    losses = roi_losses(scores, deltas, rois)
    if chosen is not None:
        losses = losses[0][chosen], losses[1][chosen]
    count = max(len(losses[0]), 1)
    return {"loss_classifier": losses[0].sum() / count, "loss_box_reg": losses[1].sum() / count}

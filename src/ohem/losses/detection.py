"""The detection loss of Fast R-CNN (paper, section 3.1), for each RoI and for a mini-batch.

Shapes: R: RoIs   K: foreground classes
"""

import torch
from torch import Tensor
from torch.nn import functional

from ohem.rois import RoIs


def roi_losses(scores: Tensor, deltas: Tensor, rois: RoIs, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Computes the classification and the box regression loss of each RoI.

    Args:
        scores: (R, K + 1) logits.
        deltas: (R, K + 1, 4) normalised box regressions, one per class.
        rois: the R RoIs that `scores` and `deltas` belong to.
        beta: difference at which smooth L1 changes from quadratic to linear.

    Returns:
        `loss_classifier` (R,), the log loss, and `loss_box_reg` (R,), smooth L1 summed over the four coordinates. Both
        are float32, or float64 if the outputs are. The log loss is computed with `log_softmax`, so that the hardest
        RoIs do not tie. It is 0 where the label is -1; `loss_box_reg` is 0 for all RoIs except foreground.
    """
    exact = torch.promote_types(scores.dtype, torch.float32)
    loss_classifier = functional.cross_entropy(scores.to(exact), rois.labels, reduction="none", ignore_index=-1)
    own = deltas.to(exact)[torch.arange(len(rois), device=deltas.device), rois.labels.clamp(min=0)]
    loss_box_reg = functional.smooth_l1_loss(own, rois.targets.to(exact), beta=beta, reduction="none").sum(dim=1)
    return loss_classifier, torch.where(rois.foreground, loss_box_reg, 0)


def weighted(losses: tuple[Tensor, Tensor], cls_weight: float = 1.0, box_weight: float = 1.0) -> Tensor:
    """Returns the weighted sum (R,) of the two losses that `roi_losses` returns."""
    return cls_weight * losses[0] + box_weight * losses[1]


def detection_loss(scores: Tensor, deltas: Tensor, rois: RoIs, chosen: Tensor | None = None) -> dict[str, Tensor]:
    """Computes the mean losses over the RoIs trained on, background included. Their sum is the loss of the paper.

    Args:
        scores, deltas, rois: as for `roi_losses`. A RoI labelled -1 counts in the mean, with a loss of 0.
        chosen: int64 indices of the RoIs to train on. The others have no loss and no gradient. None means all RoIs.

    Returns:
        The scalars `loss_classifier` and `loss_box_reg`, divided by the actual number of RoIs trained on. If there are
        none, both are 0, with a graph.
    """
    losses = roi_losses(scores, deltas, rois)
    if chosen is not None:
        losses = losses[0][chosen], losses[1][chosen]
    count = max(len(losses[0]), 1)
    return {"loss_classifier": losses[0].sum() / count, "loss_box_reg": losses[1].sum() / count}

"""From scores and box regressions to detections (Fast R-CNN, section 4; paper, section 5.1: NMS at 0.3).

Shapes: P: proposals   K: foreground classes   D: detections
"""

from dataclasses import dataclass

from torch import Tensor
from torchvision.ops import batched_nms

from ohem.boxes import clip, decode


@dataclass(frozen=True)
class PostProcess:
    """Per-class NMS over the regressed boxes; the same settings serve every arm of a comparison.

    Args:
        score: detections below it are dropped.
        nms_iou: IoU of the per-class NMS.
        max_detections: highest number per image.
    """

    score: float = 0.001
    nms_iou: float = 0.3
    max_detections: int = 300

    def __call__(self, scores: Tensor, deltas: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Detections of one image, highest score first.

        Args:
            scores: (P, K + 1) probabilities.
            deltas: (P, K + 1, 4) box regressions, not normalised.
            boxes: (P, 4) proposals.
            size: (height, width) of the image in pixels.

        Returns:
            `boxes` (D, 4) float32, `labels` (D,) int64 in 1..K, `scores` (D,) float32.
        """
        regressed = clip(decode(boxes, deltas), size)
        with_area = (regressed[..., 2:] > regressed[..., :2]).all(dim=-1)
        which, column = (with_area & (scores >= self.score))[:, 1:].nonzero(as_tuple=True)
        labels = column + 1
        found, values = regressed[which, labels], scores[which, labels]
        keep = batched_nms(found, values, labels, self.nms_iou)[: self.max_detections]
        return {"boxes": found[keep], "labels": labels[keep], "scores": values[keep]}

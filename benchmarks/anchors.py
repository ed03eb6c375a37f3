"""Measures how long the losses of an RPN take: with torchvision's random anchors, and with anchors that are mined.

    python -m benchmarks.anchors --out anchors.json

The anchors are those of torchvision's feature pyramid for an image of height `--short` and width `--long`, in pixels.
The boxes of objects are random. Scores rise with the IoU, as those of a network do, so that neighbours have similar
losses.
"""

from functools import partial

import torch
from rich.table import Table
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from benchmarks.common import make_parser_without_data, print_table, run_main, seconds_in_turns, write_report
from ohem.integrations import with_ohem
from ohem.rois import highest_iou
from ohem.samplers import OHEMSampler

STRIDES, OBJECTS, CHOSEN = (4, 8, 16, 32, 64), 8, 256
NMS_IOUS = (None, 0.7, 0.5, 0.3)


def main() -> None:
    parser = make_parser_without_data(__doc__, rounds=5)
    parser.add_argument("--short", type=int, default=800, help="height of the image in pixels")
    parser.add_argument("--long", type=int, default=1216, help="width of the image in pixels")
    options = parser.parse_args()
    torch.manual_seed(0)
    rpns = {"torchvision": _rpn(), **{f"nms_iou={iou}": _rpn(iou) for iou in NMS_IOUS}}
    anchors, targets = _anchors(rpns["torchvision"], options.short, options.long), _objects(options.short, options.long)
    iou, _ = highest_iou(anchors, targets["boxes"])
    scores = (8 * iou - 4 + 0.1 * torch.randn(len(anchors)))[:, None].requires_grad_()
    deltas = (0.1 * torch.randn(len(anchors), 4)).requires_grad_()
    steps = {}
    for name, rpn in rpns.items():
        labels, matched = rpn.assign_targets_to_anchors([anchors], [targets])
        wanted = rpn.box_coder.encode(matched, [anchors])
        steps[name] = partial(rpn.compute_loss, scores, deltas, labels, wanted)
    times = seconds_in_turns(steps, options.rounds)
    table = Table("sampler", "ms", "foreground", title=f"{len(anchors)} anchors, {CHOSEN} chosen")
    foreground = {name: rpn.mining.statistics()["foreground"] for name, rpn in rpns.items() if hasattr(rpn, "mining")}
    for name, seconds in times.items():
        share = f"{100 * foreground[name]:.0f} %" if name in foreground else ""
        table.add_row(name, f"{1000 * seconds['median']:.1f}", share)
    print_table(table)
    write_report(options.out, {"anchors": len(anchors), "seconds": times, "foreground": foreground})


def _rpn(*nms_iou: float | None) -> RegionProposalNetwork:
    """Returns the RPN of torchvision's Faster R-CNN, which mines if the IoU of the NMS is given."""
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    if nms_iou:
        with_ohem(model, rpn_sampler=OHEMSampler(CHOSEN, nms_iou=nms_iou[0]))
    return model.rpn


def _anchors(rpn: RegionProposalNetwork, height: int, width: int) -> Tensor:
    """Returns the anchors (A, 4) of an image."""
    maps = [torch.zeros(1, 1, -(-height // stride), -(-width // stride)) for stride in STRIDES]
    image = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    anchors: Tensor = rpn.anchor_generator(image, maps)[0]
    return anchors


def _objects(height: int, width: int) -> dict[str, Tensor]:
    size = torch.tensor([width, height])
    corners, lengths = torch.rand(OBJECTS, 2) * 0.6 * size, torch.rand(OBJECTS, 2) * 0.35 * size + 20
    return {"boxes": torch.cat([corners, corners + lengths], dim=1)}


if __name__ == "__main__":
    run_main(main)

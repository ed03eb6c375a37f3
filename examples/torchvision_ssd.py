"""Trains torchvision's SSDlite on mined anchors. `with_ohem` is the only line that mining adds.

    python examples/torchvision_ssd.py [FOLDER] [--steps 20] [--batch 8]

FOLDER is a data set in VOC layout. Without it, a few images are generated (`pip install "ohem[train]"`).
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from ohem import with_ohem
from ohem.data.synthetic import make_scenes
from ohem.data.voc import VOCDetection


def train(folder: Path, steps: int, batch: int) -> None:
    """Trains for `steps` steps and prints what was mined."""
    torch.manual_seed(0)
    data = VOCDetection(f"{folder}:trainval")  # image uint8 (3, H, W), {boxes, labels, ignore}
    order = RandomSampler(data, num_samples=steps * batch)
    loader = DataLoader(data, batch, sampler=order, collate_fn=lambda pairs: tuple(zip(*pairs, strict=True)))

    # weights_backbone="DEFAULT" downloads ImageNet weights: use it for a real training.
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(data.classes) + 1)
    # By default, three hard background anchors for each foreground anchor. With `OHEMSampler(64, nms_iou=None)` as the
    # second argument, the losses decide how many of both.
    model = with_ohem(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=4e-5)

    model.train()
    for step, (images, targets) in enumerate(loader, start=1):
        losses = model([image / 255 for image in images], targets)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        mined = model.mining.statistics()
        print(
            f"step {step}: loss {loss.item():.2f}; {mined['chosen']:.0f} of {mined['rois']:.0f} anchors chosen, "
            f"mean loss {mined['loss_chosen']:.2f} (all anchors: {mined['loss_all']:.2f})"
        )
    print(model.mining)  # a RoI of these statistics is an anchor


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="data set in VOC layout; default: generated images")
    parser.add_argument("--steps", type=int, default=20, help="number of training steps")
    parser.add_argument("--batch", type=int, default=8, help="number of images per mini-batch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scenes:
        if args.folder is None:
            args.folder = Path(scenes) / "scenes"
            make_scenes(args.folder, train=16, test=1)
        train(args.folder, args.steps, args.batch)

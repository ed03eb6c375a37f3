"""torchvision's SSDlite, trained on mined anchors. One line differs from a script without mining.

    python examples/torchvision_ssd.py [FOLDER] [--steps 20] [--batch 8]

FOLDER holds a data set in VOC layout; without it a few scenes are generated (`pip install "ohem[demo]"`).
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from ohem import with_ohem
from ohem.data.scenes import make_scenes
from ohem.data.voc import VOCDetection


def train(folder: Path, steps: int, batch: int) -> None:
    torch.manual_seed(0)
    data = VOCDetection(f"{folder}:trainval")  # image uint8 (3, H, W), {boxes, labels, ignore}
    order = RandomSampler(data, num_samples=steps * batch)
    loader = DataLoader(data, batch, sampler=order, collate_fn=lambda pairs: tuple(zip(*pairs, strict=True)))

    # weights_backbone="DEFAULT" downloads ImageNet weights, which is where to start in earnest.
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=len(data.classes) + 1)
    model = with_ohem(model)  # hard negatives at 3 to 1; OHEMSampler(64, nms_iou=None) lets the losses decide
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=4e-5)

    model.train()
    for step, (images, targets) in enumerate(loader):
        losses = model([image / 255 for image in images], targets)
        loss = sum(losses.values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimiser.step()
        mining = model.mining.statistics()  # is it on?
        print(f"step {step}  loss {loss:.2f}  " + "  ".join(f"{name} {mining[name]:.2f}" for name in mining))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scenes:
        if args.folder is None:
            args.folder = Path(scenes) / "scenes"
            make_scenes(args.folder, train=16, test=1)
        train(args.folder, args.steps, args.batch)

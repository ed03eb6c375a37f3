"""Trains torchvision's Faster R-CNN with online hard example mining. `with_ohem` is the only line that mining adds.

python examples/torchvision_faster_rcnn.py                                   # generated images, a few steps
python examples/torchvision_faster_rcnn.py --data FOLDER:SPLIT --steps 1000  # a data set in VOC layout
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from ohem import OHEMSampler, with_ohem
from ohem.data.synthetic import make_scenes
from ohem.data.voc import VOCDetection

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", metavar="FOLDER:SPLIT", help="data set in VOC layout; default: generated images")
parser.add_argument("--steps", type=int, default=10, help="number of training steps")
parser.add_argument("--images", type=int, default=2, help="number of images per mini-batch")
parser.add_argument("--save", type=Path, metavar="FILE", help="file for the weights; fits models without mining too")
args = parser.parse_args()

torch.manual_seed(0)
if args.data is None:
    folder = Path(tempfile.gettempdir()) / "ohem-example-scenes"
    make_scenes(folder, train=16, test=1)
    args.data = f"{folder}:trainval"
data = VOCDetection(args.data)
loader = DataLoader(
    data, batch_size=args.images, shuffle=True, collate_fn=lambda batch: tuple(zip(*batch, strict=True))
)

model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=len(data.classes) + 1)
model = with_ohem(model, OHEMSampler(batch_size=128))  # trains on the 128 hardest RoIs of each image
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

step = 0
model.train()
while step < args.steps:
    for images, targets in loader:
        losses = model([image / 255 for image in images], list(targets))
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        mined = model.mining.statistics()
        print(
            f"step {step}: loss {loss.item():.3f}; {mined['chosen']:.0f} of {mined['rois']:.0f} RoIs chosen, "
            f"mean loss {mined['loss_chosen']:.3f} (all RoIs: {mined['loss_all']:.3f})"
        )
        if step == args.steps:
            break
print(model.mining)
print("number of chosen RoIs with an IoU of 0 to 0.1, 0.1 to 0.2, ...:", model.mining.iou_histogram())
if args.save:
    torch.save(model.state_dict(), args.save)

"""torchvision's Faster R-CNN with online hard example mining: the one line that differs is that of `with_ohem`.

python examples/torchvision_faster_rcnn.py                                   # generated scenes, a few steps
python examples/torchvision_faster_rcnn.py --data FOLDER:SPLIT --steps 1000  # a data set in the layout of VOC
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from ohem import OHEMSampler, with_ohem
from ohem.data.scenes import make_scenes
from ohem.data.voc import VOCDetection

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", metavar="FOLDER:SPLIT", help="generated scenes if left out")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--images", type=int, default=2, help="of a mini-batch")
parser.add_argument("--save", type=Path, metavar="FILE", help="for the weights, good for a model without mining too")
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
model = with_ohem(model, OHEMSampler(batch_size=64))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

step = 0
model.train()
while step < args.steps:
    for images, targets in loader:
        losses = model([image / 255 for image in images], list(targets))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        step += 1
        print(f"step {step}", *(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
        print("   mined", *(f"{name} {number:.4g}" for name, number in model.mining.statistics().items()))
        if step == args.steps:
            break
print("IoU of the chosen, by tenths:", model.mining.iou_histogram())
if args.save:
    torch.save(model.state_dict(), args.save)

"""Trains a U-Net of segmentation-models-pytorch on the pixels whose class has a probability below 0.7.

pip install segmentation-models-pytorch
python examples/smp_segmentation.py [--steps 30]
"""

import argparse
import math

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from ohem import OHEMLoss

IGNORED = 255  # pixels without a label


def make_batch(size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Makes noisy images (N, 1, 64, 64) of a small bright disc, and masks (N, 64, 64) in which its rim has no label."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centre = 16 + 32 * torch.rand(size, 2, 1, 1, generator=rng)
    distance = ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2).sqrt()
    mask = (distance < 6).long().masked_fill((distance - 6).abs() < 0.5, IGNORED)
    images = (distance < 6).float() + 0.7 * torch.randn(size, 64, 64, generator=rng)
    return images[:, None], mask


def main(steps: int) -> float:
    """Trains for `steps` steps, and returns the IoU of the disc on new images."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    options = {"encoder_weights": None, "encoder_depth": 3, "decoder_channels": (32, 16, 16)}
    model = smp.Unet("resnet18", in_channels=1, classes=2, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

    # The usual OHEM of segmentation: all pixels with a probability below 0.7, and at least min_kept of the mini-batch.
    criterion = nn.CrossEntropyLoss(reduction="none", ignore_index=IGNORED)
    criterion = OHEMLoss(criterion, threshold=-math.log(0.7), min_kept=1000)

    for step in range(steps):
        images, mask = make_batch(4, rng)
        loss = criterion(model(images), mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            mined = criterion.mining
            print(
                f"step {step}: {mined['kept']:.0f} of {mined['examples']:.0f} pixels kept, "
                f"mean loss {mined['loss_kept']:.3f} (all pixels: {mined['loss_all']:.3f})"
            )

    images, mask = make_batch(16, rng)
    with torch.no_grad():
        predicted = model.eval()(images).argmax(dim=1) == 1
    iou = (predicted & (mask == 1)).sum() / (predicted & (mask == 0) | (mask == 1)).sum()
    print(f"IoU of the disc: {iou:.2f}")
    return float(iou)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="number of training steps")
    main(parser.parse_args().steps)

"""Semantic segmentation that learns from its hardest pixels: `OHEMLoss` in place of the usual cross entropy.

python examples/segmentation.py [--steps 60]
"""

import argparse

import torch
from torch import Tensor, nn

from ohem import OHEMLoss

IGNORED = 255  # pixels that nobody labelled


def make_batch(images: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy pictures (N, 1, 64, 64) of a small bright disc, and its mask (N, 64, 64) with an unlabelled rim."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centre = 16 + 32 * torch.rand(images, 2, 1, 1, generator=rng)
    distance = ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2).sqrt()
    mask = (distance < 6).long().masked_fill((distance - 6).abs() < 0.5, IGNORED)
    pictures = (distance < 6).float() + 0.7 * torch.randn(images, 64, 64, generator=rng)
    return pictures[:, None], mask


def main(steps: int) -> float:
    """Trains for `steps` steps; returns the IoU of the disc on pictures never seen."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, 2, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    # One pixel in 36 is of the disc: the mean over all pixels is that of easy background.
    criterion = OHEMLoss(nn.CrossEntropyLoss(reduction="none", ignore_index=IGNORED), keep=0.1, min_kept=100)

    for step in range(steps):
        pictures, mask = make_batch(8, rng)
        loss = criterion(model(pictures), mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            told = criterion.mining
            share = f"{told['kept']:.0f} of {told['examples']:.0f} pixels"
            print(f"step {step}: {share}, their loss {told['loss_kept']:.3f}, of all {told['loss_all']:.3f}")

    pictures, mask = make_batch(32, rng)
    found = model(pictures).argmax(dim=1) == 1
    iou = (found & (mask == 1)).sum() / (found & (mask == 0) | (mask == 1)).sum()
    print(f"IoU of the disc: {iou:.2f}")
    return float(iou)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)

"""Trains semantic segmentation on the hardest pixels, with `OHEMLoss` in place of the mean cross entropy.

python examples/segmentation.py [--steps 60]
"""

import argparse

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
    layers = [nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 16, 5, padding=2), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, 2, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    # One pixel in 36 belongs to the disc: a mean over all pixels would be that of easy background.
    criterion = OHEMLoss(nn.CrossEntropyLoss(reduction="none", ignore_index=IGNORED), keep=0.1, min_kept=100)

    for step in range(steps):
        images, mask = make_batch(8, rng)
        loss = criterion(model(images), mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps - 1:
            mined = criterion.mining
            print(
                f"step {step}: {mined['kept']:.0f} of {mined['examples']:.0f} pixels kept, "
                f"mean loss {mined['loss_kept']:.3f} (all pixels: {mined['loss_all']:.3f})"
            )

    images, mask = make_batch(32, rng)
    predicted = model(images).argmax(dim=1) == 1
    iou = (predicted & (mask == 1)).sum() / (predicted & (mask == 0) | (mask == 1)).sum()
    print(f"IoU of the disc: {iou:.2f}")
    return float(iou)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="number of training steps")
    main(parser.parse_args().steps)

"""Measures `OHEMLoss` on the pixels of an image, forward and backward, next to the usual code, which sorts all losses.

    python -m benchmarks.segmentation --out segmentation.json

Cross entropy: every pixel with a loss above -log(0.7) is trained on, and at least a sixteenth of the pixels. BCE with a
mask: the hardest quarter of the values that the mask leaves. The logits are random; `OHEMLoss` gives the same values.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from benchmarks.common import (
    announce,
    make_parser_without_data,
    print_table,
    run_main,
    seconds_in_turns,
    write_report,
)
from ohem.losses import OHEMLoss

IGNORED = 255
THRESHOLD = -math.log(0.7)
KEEP = 0.25
Loss = Callable[[Tensor], Tensor]


def main() -> None:
    options = _options()
    size = (1, options.classes, options.height, options.width)
    announce(f"losses of logits {' x '.join(map(str, size))}")
    noise = torch.Generator().manual_seed(0)
    target = torch.randint(0, options.classes, (1, options.height, options.width), generator=noise)
    # Most pixels are easy, as in a trained network, and a tenth is not annotated.
    logits = torch.randn(size, generator=noise) + 8 * F.one_hot(target, options.classes).movedim(-1, 1)
    target[torch.rand(target.shape, generator=noise) < 0.1] = IGNORED
    mask = torch.rand(size, generator=noise) < 0.9
    present = (torch.rand(size, generator=noise) < 0.2).float()
    table = Table("loss", "sort of all, s", "OHEMLoss, s", "ratio", "value", title="forward and backward")
    report = {}
    for name, methods in (("cross entropy", _cross_entropy(target)), ("BCE with a mask", _binary(present, mask))):
        values = [float(method(logits)) for method in methods.values()]
        assert math.isclose(*values, rel_tol=1e-4), f"{name}: the values differ: {values}"
        times = seconds_in_turns(
            {key: partial(_gradient, method, logits) for key, method in methods.items()}, options.rounds
        )
        usual, ours = (seconds["median"] for seconds in times.values())
        table.add_row(name, f"{usual:.3f}", f"{ours:.3f}", f"{usual / ours:.2f}", f"{values[0]:.4f}")
        report[name] = times
    print_table(table)
    write_report(options.out, {"size": size, "losses": report})


def _cross_entropy(target: Tensor) -> dict[str, Loss]:
    min_kept = max(1, target.numel() // 16)
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED, reduction="none")
    mined = OHEMLoss(criterion, threshold=THRESHOLD, min_kept=min_kept)

    def usual(logits: Tensor) -> Tensor:
        losses: Tensor = criterion(logits, target)[target != IGNORED].sort(descending=True).values
        hard = losses[losses > THRESHOLD]
        return (hard if len(hard) >= min_kept else losses[:min_kept]).mean()

    return {"sort of all": usual, "OHEMLoss": lambda logits: mined(logits, target)}


def _binary(target: Tensor, mask: Tensor) -> dict[str, Loss]:
    criterion = nn.BCEWithLogitsLoss(reduction="none")
    mined = OHEMLoss(criterion, keep=KEEP)

    def usual(logits: Tensor) -> Tensor:
        losses: Tensor = criterion(logits, target)[mask].sort(descending=True).values
        return losses[: max(1, round(KEEP * len(losses)))].mean()

    return {"sort of all": usual, "OHEMLoss": lambda logits: mined(logits, target, valid=mask)}


def _gradient(loss: Loss, logits: Tensor) -> None:
    loss(logits.clone().requires_grad_()).backward()  # type: ignore[no-untyped-call]


def _options() -> argparse.Namespace:
    parser = make_parser_without_data(__doc__, rounds=3)
    parser.add_argument("--classes", type=int, default=19, help="channels of the logits")
    parser.add_argument("--height", type=int, default=512, help="height in pixels")
    parser.add_argument("--width", type=int, default=1024, help="width in pixels")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)

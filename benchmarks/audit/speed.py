"""Measures the seconds, and those of a core, of `ohem.insight.audit` on random annotations and detections.

python -m benchmarks.audit.speed --images 10000 --boxes 100000
"""

import argparse
from time import perf_counter, process_time

import numpy as np
import torch

from benchmarks.audit.simulate import POOR, simulate
from ohem.insight import audit


def main() -> None:
    """Prints the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--boxes", type=int, default=100_000, help="given boxes in all images")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    targets = []
    for count in random.multinomial(options.boxes, np.full(options.images, 1 / options.images)):
        corners = random.uniform(0, 400, (count, 2))
        boxes = np.concatenate([corners, corners + random.uniform(20, 200, (count, 2))], axis=1)
        labels = torch.from_numpy(random.integers(1, 21, count))
        targets.append({"boxes": torch.from_numpy(boxes.astype(np.float32)), "labels": labels})
    detections = simulate(targets, [(600, 600)] * options.images, 20, POOR)
    started, used = perf_counter(), process_time()
    suspects = audit(targets, detections)
    seconds, used = perf_counter() - started, process_time() - used
    total = sum(len(item["labels"]) for item in detections)
    print(
        f"{options.images} images, {options.boxes} boxes, {total} detections: {seconds:.1f} s, "
        f"{used:.1f} s of a core, {len(suspects)} suspects"
    )


if __name__ == "__main__":
    main()

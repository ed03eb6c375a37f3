"""Measures the recall and the time of selective search at several widths of the images.

    python -m benchmarks.scale.recall --data FOLDER:SPLIT --widths 0 500 --images 40

An object is found if a proposal overlaps it with an IoU of at least 0.5. Ignored objects do not count.
"""

from time import process_time

import torch
from rich.table import Table

from benchmarks.common import announce, make_parser, print_table, run_main, write_report
from ohem.boxes import pairwise_iou
from ohem.data.dataset import DetectionSet
from ohem.inputs.datasets import open_data
from ohem.proposals.parallel import propose

TOP = 2000
IOU = 0.5


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=40, help="number of images, evenly spread over the data")
    parser.add_argument("--widths", type=int, nargs="+", default=[0, 500], help="highest widths; 0 reduces no image")
    options = parser.parse_args()
    data = open_data([options.data], (), "--data")
    count = min(options.images, len(data))
    indices = [i * len(data) // count for i in range(count)]
    announce(f"selective search in {count} images, at the widths {', '.join(map(str, options.widths))}")
    results = {width: _measure(data, indices, options.mode, width) for width in options.widths}
    columns = ("width", "objects", "recall", f"recall of the first {TOP}", "proposals an image", "CPU s an image")
    table = Table(*columns, title=f"{options.data}, {options.mode}")
    for width, row in results.items():
        shares = [f"{100 * row[key] / row['objects']:.1f} %" for key in ("found", "found_first")]
        table.add_row(
            str(width), str(row["objects"]), *shares, f"{row['proposals'] / count:.0f}", f"{row['seconds'] / count:.2f}"
        )
    print_table(table)
    write_report(options.out, {str(width): row for width, row in results.items()})


def _measure(data: DetectionSet, indices: list[int], mode: str, width: int) -> dict[str, float]:
    """Returns the numbers of objects, of those found, and of proposals, and the CPU seconds, over all images."""
    totals = dict.fromkeys(("objects", "found", "found_first", "proposals", "seconds"), 0.0)
    for index in indices:
        started = process_time()
        _, proposals = propose("", data.path(index), mode, 0, width)  # type: ignore[arg-type]
        totals["seconds"] += process_time() - started
        target, boxes = data.target(index), torch.from_numpy(proposals)
        overlaps = pairwise_iou(target["boxes"][~target["ignore"]], boxes) >= IOU
        totals["objects"] += len(overlaps)
        totals["found"] += int(overlaps.any(dim=1).sum())
        totals["found_first"] += int(overlaps[:, :TOP].any(dim=1).sum())
        totals["proposals"] += len(boxes)
    return totals


if __name__ == "__main__":
    run_main(main)

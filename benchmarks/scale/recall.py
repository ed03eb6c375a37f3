"""Measures the recall and the time of selective search, and of Edge Boxes, at several widths of the images.

    python -m benchmarks.scale.recall --data FOLDER:SPLIT --widths 0 500 --images 40
    python -m benchmarks.scale.recall --data FOLDER:SPLIT --widths 500 --edge-model model.yml.gz

An object is found if a proposal overlaps it with an IoU of at least 0.5 or 0.7. Ignored objects do not count. With a
model of edges, Edge Boxes and the union of both methods are measured too.
"""

from collections.abc import Sequence
from pathlib import Path
from time import process_time

import torch
from rich.table import Table

from benchmarks.common import announce, make_parser, print_table, run_main, write_report
from ohem.boxes import pairwise_iou
from ohem.data.dataset import DetectionSet
from ohem.inputs.datasets import open_data
from ohem.proposals.edge_boxes import EdgeBoxes
from ohem.proposals.methods import Method, MethodUnion
from ohem.proposals.parallel import propose
from ohem.proposals.selective_search import SelectiveSearch

TOP = 2000
IOUS = {"found": 0.5, "found_at_0.7": 0.7}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=40, help="number of images, evenly spread over the data")
    parser.add_argument("--widths", type=int, nargs="+", default=[0, 500], help="highest widths; 0 reduces no image")
    parser.add_argument("--edge-model", type=Path, help="file of the model of edges, to measure Edge Boxes too")
    options = parser.parse_args()
    data = open_data([options.data], (), "--data")
    count = min(options.images, len(data))
    indices = [i * len(data) // count for i in range(count)]
    announce(f"proposals of {count} images, at the widths {', '.join(map(str, options.widths))}")
    rows = {
        f"{' and '.join(method.title for method in methods)}, {width}": _measure(data, indices, methods)
        for width in options.widths
        for methods in _methods(options.mode, width, options.edge_model)
    }
    columns = (
        "method, width",
        "objects",
        "recall at 0.5",
        f"of the first {TOP}",
        "recall at 0.7",
        "proposals",
        "CPU s",
    )
    table = Table(*columns, title=f"{options.data}, proposals and CPU time of an image")
    for name, row in rows.items():
        shares = [f"{100 * row[key] / row['objects']:.1f} %" for key in ("found", "found_first", "found_at_0.7")]
        proposals, seconds = row["proposals"] / count, row["seconds"] / count
        table.add_row(name, f"{row['objects']:.0f}", *shares, f"{proposals:.0f}", f"{seconds:.2f}")
    print_table(table)
    write_report(options.out, rows)


def _methods(mode: str, width: int, model: Path | None) -> list[list[Method]]:
    """Returns selective search and, where there is a model, Edge Boxes and both."""
    search: Method = SelectiveSearch(mode, width=width)  # type: ignore[arg-type]
    if model is None:
        return [[search]]
    edge_boxes: Method = EdgeBoxes.of(model, width)
    edge_boxes.check()
    return [[search], [edge_boxes], [search, edge_boxes]]


def _measure(data: DetectionSet, indices: list[int], methods: Sequence[Method]) -> dict[str, float]:
    """Returns the numbers of objects, of those found, and of proposals, and the CPU seconds, over all images.

    Of several methods, the first proposals of each one are measured.
    """
    totals = dict.fromkeys(("objects", *IOUS, "found_first", "proposals", "seconds"), 0.0)
    search = methods[0] if len(methods) == 1 else MethodUnion(methods, TOP)
    for index in indices:
        started = process_time()
        _, proposals = propose("", data.path(index), search)
        totals["seconds"] += process_time() - started
        target, boxes = data.target(index), torch.from_numpy(proposals)
        ious = pairwise_iou(target["boxes"][~target["ignore"]], boxes)
        totals["objects"] += len(ious)
        for key, iou in IOUS.items():
            totals[key] += int((ious >= iou).any(dim=1).sum())
        totals["found_first"] += int((ious[:, : TOP * len(methods)] >= IOUS["found"]).any(dim=1).sum())
        totals["proposals"] += len(boxes)
    return totals


if __name__ == "__main__":
    run_main(main)

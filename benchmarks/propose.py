"""Measures images per second of selective search over a data set, with one core and with all.

python -m benchmarks.propose --data FOLDER:SPLIT --images 64 --out propose.json
"""

import os
import tempfile
from pathlib import Path
from time import perf_counter

from rich.table import Table

from benchmarks.common import announce, make_parser, print_table, run_main, write_report
from ohem.inputs.datasets import open_data
from ohem.proposals.generate import generate
from ohem.proposals.selective_search import Mode, SelectiveSearch


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=64, help="maximum number of images")
    options = parser.parse_args()
    data = open_data([options.data], (), "--data", annotated=False)
    images = {name: data.path(i) for i, name in enumerate(data.ids[: options.images])}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    announce(f"selective search in {len(images)} images, with one core and with {cores}")
    rates = {jobs: _rate(images, options.mode, jobs) for jobs in dict.fromkeys((1, cores))}
    table = Table("cores", "images/s", "ratio", title=f"selective search ({options.mode}), {len(images)} images")
    for jobs, rate in rates.items():
        table.add_row(str(jobs), f"{rate:.2f}", f"{rate / rates[1]:.2f}")
    print_table(table)
    write_report(options.out, {"images_per_second": rates})


def _rate(images: dict[str, Path], mode: Mode, jobs: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        generate(images, Path(folder) / "proposals.safetensors", SelectiveSearch(mode), jobs=jobs, progress=False)
        return len(images) / (perf_counter() - started)


if __name__ == "__main__":
    run_main(main)

"""Writes a data set with wrong annotations, in VOC layout: boxes that are missing, or classes that are swapped.

    python -m benchmarks.noise.plant FOLDER:SPLIT OUT --kind missing --share 0.3

The pictures are links to the given ones; proposals are copied. It prints the new source.
"""

import argparse
from pathlib import Path

from benchmarks.audit.figures import write_planted
from benchmarks.audit.plant import plant
from benchmarks.common import run_main
from ohem.data.sources import open_dataset


def write_noisy(source: str, out: Path, kind: str, share: float, seed: int = 0) -> str:
    """Writes the data set `out` with errors of one kind in a share of all objects; returns its source."""
    data = open_dataset([source])
    targets, sizes = [data.target(i) for i in range(len(data))], [data.size(i) for i in range(len(data))]
    wrong, _ = plant(targets, sizes, len(data.classes), share=share, seed=seed, kinds=[kind])
    return write_planted(out, data, wrong)


def main() -> None:
    """Writes the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="data set with right annotations")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--kind", choices=("missing", "class"), default="missing")
    parser.add_argument("--share", type=float, default=0.3, help="errors, as a share of the objects")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(write_noisy(options.source, options.out, options.kind, options.share, options.seed))


if __name__ == "__main__":
    run_main(main)

"""Writes a structured forest that is made by hand, not trained, in the format of OpenCV's model of edges.

It stands in for a trained model in tests and measurements.

A patch of 8 x 8 pixels has a line through its middle where the magnitude of the gradient there, relative to the mean
around it, is above a threshold: upright where the gradient is horizontal, level where it is vertical.

    python -m benchmarks.scale.edge_forest edges.yml.gz
"""

import argparse
import gzip
from collections.abc import Iterable
from pathlib import Path

OPTIONS = {
    "stride": 2,
    "shrinkNumber": 2,
    "patchSize": 8,
    "patchInnerSize": 4,
    "numberOfGradientOrientations": 4,
    "gradientSmoothingRadius": 0,
    "regFeatureSmoothingRadius": 2,
    "ssFeatureSmoothingRadius": 8,
    "gradientNormalizationRadius": 4,
    "selfsimilarityGridSize": 1,
    "numberOfTrees": 2,
    "numberOfTreesToEvaluate": 1,
}
CELLS = (8 // 2) ** 2
MIDDLE = 5
"""Cell of the patch, row 1 and column 1 of 4 x 4."""
MAGNITUDE, HORIZONTAL, VERTICAL = 3, 4, 6
"""Channels: magnitude of the gradient, of the horizontal and of the vertical gradient."""
UPRIGHT, LEVEL = [2, 6, 10, 14], [8, 9, 10, 11]
"""Pixels of a line in the inner 4 x 4 pixels of a patch."""
THRESHOLD = 0.8


def write_edge_forest(path: Path, threshold: float = THRESHOLD) -> Path:
    """Writes the forest into the file `path`, which is compressed if its suffix is .gz; returns `path`."""
    # Node 0 leads to 1 (no edge) or 2, 2 to 3 or 4 (upright), 3 to 5 (no edge) or 6 (level).
    children = [2, 0, 4, 6, 0, 0, 0]
    channels = [MAGNITUDE, 0, HORIZONTAL, VERTICAL, 0, 0, 0]
    lines: list[list[int]] = [[], [], [], [], UPRIGHT, [], LEVEL]
    trees = range(OPTIONS["numberOfTrees"])
    bins: list[int] = []
    ends = [0]
    for line in [line for _ in trees for line in lines]:
        bins += line
        ends.append(len(bins))
    nodes: dict[str, list[list[float]]] = {
        "childs": [[*children] for _ in trees],
        "featureIds": [[channel * CELLS + MIDDLE for channel in channels] for _ in trees],
        "thresholds": [[threshold, 0.0, threshold / 2, threshold / 2, 0.0, 0.0, 0.0] for _ in trees],
        "edgeBoundaries": [[*ends]],
        "edgeBins": [[*bins]],
    }
    text = "%YAML:1.0\n---\noptions:\n" + "".join(f"   {name}: {value}\n" for name, value in OPTIONS.items())
    text += "".join(f"{name}:\n{_rows(rows)}" for name, rows in nodes.items())
    content = text.encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def _rows(rows: Iterable[Iterable[float]]) -> str:
    return "".join(f"   - [ {', '.join(map(str, row))} ]\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="file to write")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="relative magnitude of an edge")
    options = parser.parse_args()
    write_edge_forest(options.file, options.threshold)


if __name__ == "__main__":
    main()

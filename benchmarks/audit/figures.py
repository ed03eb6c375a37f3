"""Finds planted errors: `ohem audit` against its peers, on the same out-of-fold detections.

    python -m benchmarks.audit.figures FOLDER:SPLIT --recipe small-ohem --seeds 3 --out runs/audit-figures

For each seed it plants errors in a tenth of the objects, writes them in VOC layout, and runs `ohem audit` on them with
the recipe and the options after `--`; repeat it to resume. `--detections FILE.safetensors`, of an earlier audit of the
right annotations, plants the errors after the detections were made instead: nothing is trained. It needs cleanlab.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor

from benchmarks.audit.peers import confidence, loss, objectlab
from benchmarks.audit.plant import Planted, Target, flags, plant
from benchmarks.audit.score import calibration_error, figures
from benchmarks.common import parse_with_more, print_table, run_main
from ohem.data.dataset import DetectionSet
from ohem.data.sources import open_dataset
from ohem.insight import audit
from ohem.insight.suspects.detections import NAME, read_detections
from ohem.io.json_files import write_json

OBJECT = """<object><name>{}</name><difficult>0</difficult>
<bndbox><xmin>{:.2f}</xmin><ymin>{:.2f}</ymin><xmax>{:.2f}</xmax><ymax>{:.2f}</ymax></bndbox></object>
"""


def write_planted(folder: Path, data: DetectionSet, targets: Sequence[Target]) -> str:
    """Writes annotations in VOC layout with links to the pictures, and the proposals; returns the source."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index, target in enumerate(targets):
        image, (height, width) = data.path(index), data.size(index)
        link = folder / "JPEGImages" / image.name
        if not link.exists():
            link.symlink_to(image.resolve())
        things = [
            OBJECT.format(data.classes[label - 1], x1 + 1, y1 + 1, x2, y2)
            for label, (x1, y1, x2, y2) in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
        ]
        size = f"<size><width>{width}</width><height>{height}</height></size>\n"
        text = f"<annotation>\n{size}{''.join(things)}</annotation>\n"
        (folder / "Annotations" / f"{image.stem}.xml").write_text(text, encoding="utf-8")
    stems = "".join(f"{data.path(index).stem}\n" for index in range(len(data)))
    (folder / "ImageSets" / "Main" / "all.txt").write_text(stems, encoding="utf-8")
    for source in data.sources:  # proposals depend on the pictures alone
        for file in (source.folder / "Proposals").glob(f"{source.name}.*.safetensors"):
            (folder / "Proposals").mkdir(exist_ok=True)
            shutil.copyfile(file, folder / "Proposals" / file.name.replace(source.name, "all", 1))
    return f"{folder}:all"


def compare(
    targets: Sequence[Target], detections: Sequence[dict[str, Tensor]], planted: Sequence[Planted], classes: int
) -> dict[str, dict[str, float]]:
    """Returns the figures of `ohem audit` and of its peers."""
    suspects = audit(targets, detections)
    rankings: dict[str, Sequence[Any]] = {
        "ohem audit": suspects,
        "ObjectLab": objectlab(targets, detections, classes),
        "loss": loss(targets, detections),
        "confidence": confidence(targets, detections),
    }
    results = {name: figures(ranking, planted) for name, ranking in rankings.items()}
    right = [error is not None for error in flags(suspects, planted)]
    results["ohem audit"]["calibration error"] = calibration_error([s.score for s in suspects], right)
    return results


def summary(results: Mapping[int, Mapping[str, Mapping[str, float]]]) -> Table:
    """Returns a table of the means over the seeds."""
    seeds = list(results.values())
    keys = list(next(iter(seeds[0].values())))
    table = Table("method", *keys)
    for method in seeds[0]:
        values = [[seed[method][key] for seed in seeds if key in seed[method]] for key in keys]
        table.add_row(method, *(f"{np.nanmean(of_seeds):.3f}" if of_seeds else "" for of_seeds in values))
    return table


def main() -> None:
    """Plants, detects, compares; prints a table and writes figures.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="data set with right annotations")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--share", type=float, default=0.1, help="errors, as a share of the objects")
    parser.add_argument("--detections", type=Path, help="detections.safetensors of the right annotations")
    parser.add_argument("--out", type=Path, default=Path("runs/audit-figures"))
    parser.add_argument("--recipe", default="small-ohem", help="recipe of the folds")
    options = parse_with_more(parser)
    data = open_dataset([options.source])
    targets, sizes = [data.target(i) for i in range(len(data))], [data.size(i) for i in range(len(data))]
    results: dict[int, dict[str, dict[str, float]]] = {}
    for seed in range(options.seeds):
        wrong, planted = plant(targets, sizes, len(data.classes), share=options.share, seed=seed)
        if options.detections is None:
            out = options.out / f"seed-{seed}"
            source = write_planted(out / "data", data, wrong)
            command = [
                sys.executable,
                "-m",
                "ohem",
                "audit",
                source,
                "--out",
                str(out / "audit"),
                "--recipe",
                options.recipe,
            ]
            subprocess.run([*command, *options.options, "--solver.seed", str(seed)], check=True)
            detections = read_detections(out / "audit" / NAME)
        else:
            detections = read_detections(options.detections)
        results[seed] = compare(wrong, detections, planted, len(data.classes))
    print_table(summary(results))
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "figures.json", {str(seed): result for seed, result in results.items()})


if __name__ == "__main__":
    run_main(main)

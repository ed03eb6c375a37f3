"""Finds planted errors by one run that was trained on them: with its detections alone, and with its mining log too.

    python -m benchmarks.audit.mined FOLDER:SPLIT --recipe small-ohem --seeds 0 1 2 3 --fit 0 1 -- --solver.steps 400

For each seed it plants errors in a tenth of the objects and trains on them, with the options after `--`; repeat it to
resume. The seeds of `--fit` give the coefficients of `ohem.insight.suspects.mined`, which it prints; the table has the
figures of the other seeds, with these coefficients.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.audit.figures import summary, write_planted
from benchmarks.audit.plant import Planted, flags, plant
from benchmarks.audit.score import calibration_error, figures
from benchmarks.common import parse_with_more, print_table, run_main
from ohem.data.sources import open_dataset
from ohem.evaluation.evaluate import detect_all, load_detector
from ohem.inputs.examples import open_recipe_data
from ohem.insight.suspects import mined as mining
from ohem.insight.suspects.evidence import logit
from ohem.insight.suspects.scores import LEAST, Suspect, audit


class Case:
    """One planted data set and the run that was trained on it."""

    def __init__(self, source: str, out: Path, seed: int, share: float, recipe: str, options: Sequence[str]) -> None:
        data = open_dataset([source])
        targets, sizes = [data.target(i) for i in range(len(data))], [data.size(i) for i in range(len(data))]
        self.targets, self.planted = plant(targets, sizes, len(data.classes), share=share, seed=seed)
        planted_source = write_planted(out / "data", data, self.targets)
        run = out / "run"
        command = [sys.executable, "-m", "ohem", "train", str(run), "--recipe", recipe]
        command += ["--data.train", planted_source, "--solver.seed", str(seed), *options]
        subprocess.run(command, check=True)
        model, of_run, _ = load_detector(run)
        planted_data = open_recipe_data(of_run, [planted_source], "SOURCE")
        self.detections, _ = detect_all(model, planted_data, of_run)
        self.mined = mining.read_mined(run, planted_data)

    def samples(self) -> tuple[list[list[float]], list[bool]]:
        """Returns log odds by detections and relative loss of the given boxes, and whether they are errors."""
        suspects = audit(self.targets, self.detections, least=1e-4)
        features, hits = [], []
        for suspect, error in zip(suspects, flags(suspects, self.planted), strict=True):
            if suspect.given is not None and suspect.image in self.mined:
                features.append([float(logit(suspect.score)), float(self.mined[suspect.image][suspect.given])])
                hits.append(error is not None)
        return features, hits

    def results(self) -> dict[str, dict[str, float]]:
        """Returns the figures with and without the log."""
        return {
            "detections": _figures(audit(self.targets, self.detections), self.planted),
            "detections and log": _figures(mining.audit_mined(self.targets, self.detections, self.mined), self.planted),
        }


def _figures(suspects: Sequence[Suspect], planted: Sequence[Planted]) -> dict[str, float]:
    right = [error is not None for error in flags(suspects, planted)]
    return {
        **figures(suspects, planted),
        "calibration error": calibration_error([s.score for s in suspects if s.score >= LEAST], right),
    }


def fit(cases: Sequence[Case]) -> tuple[float, float, float]:
    """Returns offset, weight of the log odds by detections and weight of the relative loss."""
    features: list[Any] = []
    right: list[bool] = []
    for case in cases:
        more, hits = case.samples()
        features += more
        right += hits
    model = LogisticRegression(C=1.0, max_iter=3000).fit(np.asarray(features), right)
    odds, loss = map(float, model.coef_[0])
    return float(model.intercept_[0]), odds, loss


def main() -> None:
    """Plants, trains, fits and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="data set with right annotations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--fit", type=int, nargs="*", default=[0, 1], help="seeds to fit the coefficients to")
    parser.add_argument("--share", type=float, default=0.1, help="errors, as a share of the objects")
    parser.add_argument("--out", type=Path, default=Path("runs/audit-mined"))
    parser.add_argument("--recipe", default="small-ohem")
    given = parse_with_more(parser)
    cases = {
        seed: Case(given.source, given.out / f"seed-{seed}", seed, given.share, given.recipe, given.options)
        for seed in given.seeds
    }
    if given.fit:
        mining.COEFFICIENTS = fit([cases[seed] for seed in given.fit])
        print(f"COEFFICIENTS = ({', '.join(f'{value:.2f}' for value in mining.COEFFICIENTS)})")
    print_table(summary({seed: case.results() for seed, case in cases.items() if seed not in given.fit}))


if __name__ == "__main__":
    run_main(main)

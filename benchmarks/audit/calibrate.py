"""Fits the coefficients of `ohem.insight.suspects.calibration` to planted errors, and prints them.

    python -m benchmarks.audit.calibrate FOLDER:SPLIT ... --detections SOURCE FILE.safetensors

Errors are planted in the annotations of the data sets, at several rates and with several random numbers, after the
detections were made: these come from simulated detectors, good, middling and poor (benchmarks/audit/simulate.py), and
from files of `ohem audit` (OUT/detections.safetensors of other runs), which count as much together. The coefficients of
the package are those of cards:trainval and bccd:trainval, simulated, and of detections in cards:test.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.audit.plant import KINDS, Planted, Target, plant
from benchmarks.audit.simulate import GOOD, MIDDLING, POOR, simulate
from ohem.data.sources import open_dataset
from ohem.insight.suspects import evidence as ev
from ohem.insight.suspects.calibration import CONFIDENT_SCORE, KINDS_OF_BOXES, judge, missing_features
from ohem.insight.suspects.detections import read_detections
from ohem.insight.suspects.scores import read_images

RATES = (0.03, 0.1, 0.2)
ALL_KINDS = (*KINDS, "duplicate")
Detections = Sequence[dict[str, Tensor]]
Array = NDArray[np.float64]


class Sample(NamedTuple):
    """Features and labels of one planted data set."""

    boxes: Array  # (G, 8) or (G, 16)
    kinds: NDArray[np.int64]  # 0: right, i: KINDS_OF_BOXES[i - 1]
    missing: Array  # (M, 4)
    dropped: NDArray[np.int64]  # 1: a dropped box
    twins: Array  # IoU, where there is a twin
    is_twin: NDArray[np.int64]


def sample(targets: Sequence[Target], detections: Detections, planted: Sequence[Planted]) -> Sample:
    """Returns the features of planted annotations, and which of them are errors."""
    images, classes = read_images(targets, detections)
    judged = judge(images, classes)
    wrong = {(error.image, error.given): error.kind for error in planted}
    dropped = [
        [e.box.double().numpy() for e in planted if e.given is None and e.image == i] for i in range(len(images))
    ]
    parts: list[Sample] = []
    for i, (prediction, truth) in enumerate(images):
        about = judged.boxes[i]
        kinds = [wrong.get((i, j), "") for j in range(len(truth.labels))]
        number = np.array([1 + KINDS_OF_BOXES.index(k) if k in KINDS_OF_BOXES else 0 for k in kinds], np.int64)
        detected = ev.of_detections(prediction, truth, judged.chances[i], about)
        hits = _hits(prediction.boxes[detected.detection], dropped[i])
        twin = about.twin_iou > 0
        # Of two boxes of an object either may be the planted one.
        pair = np.array(
            [k == "duplicate" or kinds[about.twin[j]] == "duplicate" for j, k in enumerate(kinds)], np.int64
        )
        single = np.array([k != "duplicate" for k in kinds], bool)
        features = judged.features[i]
        parts.append(
            Sample(features[single], number[single], missing_features(detected), hits, about.twin_iou[twin], pair[twin])
        )
    return Sample(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _hits(boxes: Array, dropped: Sequence[Array]) -> NDArray[np.int64]:
    """Returns which boxes are the first that overlap a dropped box."""
    hits = np.zeros(len(boxes), np.int64)
    for box in dropped:
        iou, _ = ev.iou_and_shared(boxes, box[None])
        near = np.flatnonzero(iou[:, 0] >= 0.5)
        hits[near[:1]] = 1
    return hits


def samples(
    sources: Sequence[str], files: Sequence[tuple[str, Path]], seed: int, least: float
) -> Iterator[tuple[Sample, bool]]:
    """Yields samples of simulated detections and of those in files, of `least` score, and whether they are of files."""
    for text in sources:
        data = open_dataset([text])
        targets, sizes = [data.target(i) for i in range(len(data))], [data.size(i) for i in range(len(data))]
        for detector in (GOOD, MIDDLING, POOR):
            for rate in RATES:
                seed += 1
                made = simulate(targets, sizes, len(data.classes), detector, seed)
                wrong, planted = plant(targets, sizes, len(data.classes), share=rate, seed=seed, kinds=ALL_KINDS)
                yield sample(wrong, confident(made, least), planted), False
    for text, path in files:
        data = open_dataset([text])
        targets, sizes = [data.target(i) for i in range(len(data))], [data.size(i) for i in range(len(data))]
        for rate in RATES * 3:
            seed += 1
            wrong, planted = plant(targets, sizes, len(data.classes), share=rate, seed=seed, kinds=ALL_KINDS)
            yield sample(wrong, confident(read_detections(path), least), planted), True


def confident(detections: Detections, least: float) -> Detections:
    """Returns the detections of at least this score: many detectors report only those of 0.05 or more."""
    return [{key: value[item["scores"] >= least] for key, value in item.items()} for item in detections]


def fit(collected: Sequence[tuple[Sample, bool]]) -> dict[str, Array]:
    """Returns the coefficients, offset first; samples of files count as much as the simulated ones together."""
    merged = Sample(*(np.concatenate(column) for column in zip(*(s for s, _ in collected), strict=True)))

    def weights(field: str) -> Array:
        counts = {real: sum(len(getattr(s, field)) for s, r in collected if r == real) for real in (False, True)}
        return np.concatenate(
            [np.full(len(getattr(s, field)), sum(counts.values()) / counts[r] / 2) for s, r in collected]
        )

    model = LogisticRegression(C=1.0, max_iter=3000)
    model.fit(merged.boxes, merged.kinds, sample_weight=weights("kinds"))
    coefficients = np.concatenate([model.intercept_[:, None], model.coef_], axis=1)
    result: dict[str, Array] = {kind: coefficients[1 + i] - coefficients[0] for i, kind in enumerate(KINDS_OF_BOXES)}
    for name, features, labels, field in (
        ("missing", merged.missing, merged.dropped, "dropped"),
        ("duplicate", merged.twins[:, None], merged.is_twin, "is_twin"),
    ):
        model.fit(features, labels, sample_weight=weights(field))
        result[name] = np.concatenate([model.intercept_, model.coef_[0]])
    return result


def main() -> None:
    """Prints the coefficients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="data sets for simulated detectors")
    parser.add_argument("--detections", nargs=2, action="append", default=[], metavar=("SOURCE", "FILE"))
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    files = [(source, Path(file)) for source, file in options.detections]
    for table, least in (("COMPLETE", 0.0), ("CONFIDENT", CONFIDENT_SCORE)):
        print(table)
        for name, values in fit(list(samples(options.sources, files, options.seed, least))).items():
            print(f'"{name}": ({", ".join(f"{value:.2f}" for value in values)}),')


if __name__ == "__main__":
    main()

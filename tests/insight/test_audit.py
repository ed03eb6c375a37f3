"""Suspect annotations: hand-countable cases of each kind, properties, and planted errors."""

from typing import Any

import pytest
import torch
from benchmarks.audit.plant import KINDS, flags, plant
from benchmarks.audit.score import calibration_error, figures
from benchmarks.audit.simulate import MIDDLING, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from ohem.insight import Suspect, audit

CAT, DOG = 1, 2
LEFT, RIGHT, FAR = [10.0, 10, 50, 50], [100.0, 100, 150, 150], [200.0, 20, 260, 70]


def target(*things: tuple[list[float], int], ignore: list[bool] | None = None) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([box for box, _ in things]).reshape(-1, 4)
    marks = {"ignore": torch.tensor(ignore)} if ignore else {}
    return {"boxes": boxes, "labels": torch.tensor([label for _, label in things], dtype=torch.int64), **marks}


def prediction(*things: tuple[list[float], int, float]) -> dict[str, torch.Tensor]:
    return target(*(thing[:2] for thing in things)) | {"scores": torch.tensor([score for *_, score in things])}


def moved(box: list[float], x: float) -> list[float]:
    return [box[0] + x, box[1], box[2] + x, box[3]]


def with_context(
    one: dict[str, torch.Tensor], detections: dict[str, torch.Tensor]
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Returns the image after 20 others, in which a cat and a dog are annotated as they are detected."""
    right = target((LEFT, CAT), (RIGHT, DOG))
    seen = prediction((LEFT, CAT, 0.95), (RIGHT, DOG, 0.95), (FAR, CAT, 0.005))
    return [*[right] * 20, one], [*[seen] * 20, detections]


def only(suspects: list[Suspect]) -> Suspect:
    likely = [suspect for suspect in suspects if suspect.image == 20 and suspect.score > 0.3]
    assert len(likely) == 1, likely
    return likely[0]


def test_a_missing_box() -> None:
    detections = prediction((LEFT, CAT, 0.95), (RIGHT, DOG, 0.98))
    suspect = only(audit(*with_context(target((LEFT, CAT)), detections)))
    assert (suspect.kind, suspect.given, suspect.given_box, suspect.given_label) == ("missing", None, None, None)
    assert (suspect.proposed_box, suspect.proposed_label) == (tuple(RIGHT), DOG)


def test_a_wrong_class() -> None:
    detections = prediction((LEFT, CAT, 0.95), (RIGHT, DOG, 0.98), (RIGHT, CAT, 0.01))
    suspect = only(audit(*with_context(target((LEFT, CAT), (RIGHT, CAT)), detections)))
    assert (suspect.kind, suspect.given, suspect.given_label, suspect.proposed_label) == ("class", 1, CAT, DOG)
    assert suspect.given_box == suspect.proposed_box == tuple(RIGHT)


def test_a_badly_placed_box() -> None:
    detections = prediction((LEFT, CAT, 0.95), (RIGHT, DOG, 0.98))
    suspect = only(audit(*with_context(target((LEFT, CAT), (moved(RIGHT, 28), DOG)), detections)))
    assert (suspect.kind, suspect.given, suspect.proposed_label) == ("place", 1, DOG)
    assert (suspect.given_box, suspect.proposed_box) == (tuple(moved(RIGHT, 28)), tuple(RIGHT))


def test_a_box_around_nothing() -> None:
    detections = prediction((LEFT, CAT, 0.95))
    suspect = only(audit(*with_context(target((LEFT, CAT), (FAR, DOG)), detections)))
    assert (suspect.kind, suspect.given, suspect.given_box) == ("background", 1, tuple(FAR))
    assert suspect.proposed_box is suspect.proposed_label is None


def test_a_duplicate_is_the_box_that_fits_worse() -> None:
    detections = prediction((LEFT, CAT, 0.95), (RIGHT, DOG, 0.9))
    suspect = only(audit(*with_context(target((moved(LEFT, 4), CAT), (LEFT, CAT), (RIGHT, DOG)), detections)))
    assert (suspect.kind, suspect.proposed_box) == ("duplicate", None)
    assert suspect.given in (0, 1)


def test_right_annotations_are_not_suspect() -> None:
    right = target((LEFT, CAT), (RIGHT, DOG))
    suspects = audit(*with_context(right, prediction((LEFT, CAT, 0.95), (RIGHT, DOG, 0.95))))
    assert max((suspect.score for suspect in suspects), default=0) < 0.1


def test_ignored_objects_are_neither_judged_nor_missing() -> None:
    detections = prediction((LEFT, CAT, 0.95), (moved(FAR, 3), DOG, 0.98))
    both = target((LEFT, CAT), (FAR, DOG), (RIGHT, DOG), ignore=[False, True, True])
    assert [s for s in audit(*with_context(both, detections)) if s.image == 20 and s.score > 0.05] == []
    crowd = {**both, "iscrowd": both["ignore"]}
    del crowd["ignore"]
    assert audit(*with_context(crowd, detections)) == audit(*with_context(both, detections))


def test_a_detection_within_a_crowd_is_no_missing_box() -> None:
    crowd = [60.0, 60, 300, 300]  # its IoU with the detection is low
    detections = prediction((LEFT, CAT, 0.95), (RIGHT, DOG, 0.98))
    for ignore in (False, True):
        one = target((LEFT, CAT), (crowd, CAT), ignore=[False, ignore])
        suspects = audit(*with_context(one, detections), least=0.0)
        scores = [s.score for s in suspects if (s.image, s.proposed_box, s.kind) == (20, tuple(RIGHT), "missing")]
        assert (scores == [0.0]) == ignore


def test_the_detection_of_a_neighbour_says_nothing_about_a_box() -> None:
    near = moved(RIGHT, 18)  # IoU 0.47
    detections = prediction((LEFT, CAT, 0.95), (RIGHT, DOG, 0.97), (near, CAT, 0.97))
    crowded = audit(*with_context(target((LEFT, CAT), (RIGHT, DOG), (near, CAT)), detections), least=0.0)
    alone = audit(*with_context(target((LEFT, CAT), (RIGHT, DOG)), detections), least=0.0)
    scores = [next(s.score for s in suspects if (s.image, s.given) == (20, 1)) for suspects in (crowded, alone)]
    assert scores[0] < scores[1]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"scores": torch.tensor([1.5])}, ValueError, "outside 0..1"),
        ({"scores": torch.tensor([float("nan")])}, ValueError, "NaN"),
        ({"scores": torch.tensor([0.1, 0.2])}, ValueError, "must agree"),
        ({"labels": torch.tensor([0])}, ValueError, "label"),
    ],
)
def test_impossible_predictions_are_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        audit([target((LEFT, CAT))], [prediction((LEFT, CAT, 0.5)) | change])


def test_numbers_of_images_must_agree() -> None:
    with pytest.raises(ValueError, match="as many as the images"):
        audit([target((LEFT, CAT))], [])
    assert audit([], []) == []


def test_images_without_boxes_or_detections() -> None:
    assert audit([target()], [prediction()]) == []
    assert [s.kind for s in audit([target((LEFT, CAT))], [prediction()])] in ([], ["background"])


coordinate = st.integers(0, 90)
box = st.builds(
    lambda x, y, w, h: [float(x), float(y), float(x + w), float(y + h)], *[coordinate] * 2, *[st.integers(1, 60)] * 2
)
label = st.integers(1, 3)
images = st.lists(
    st.tuples(
        st.lists(st.tuples(box, label), max_size=4),
        st.lists(st.tuples(box, label, st.floats(0, 1, width=32)), max_size=6, unique_by=lambda d: d[2]),
    ),
    min_size=1,
    max_size=3,
)


@given(images, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_scores_are_chances_and_order_does_not_matter(data: Any, random: Any) -> None:
    suspects = audit([target(*t) for t, _ in data], [prediction(*p) for _, p in data], least=0.0)
    scores = [suspect.score for suspect in suspects]
    assert all(0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)
    boxes = [(suspect.image, suspect.given) for suspect in suspects if suspect.given is not None]
    assert len(set(boxes)) == len(boxes)
    order = random.sample(range(len(data)), len(data))
    mixed = [(random.sample(data[i][0], len(data[i][0])), random.sample(data[i][1], len(data[i][1]))) for i in order]
    again = audit([target(*t) for t, _ in mixed], [prediction(*p) for _, p in mixed], least=0.0)
    assert sorted(s.score for s in again) == pytest.approx(sorted(scores), abs=1e-6)
    assert sorted(order[s.image] for s in again) == sorted(s.image for s in suspects)


def planted_set(seed: int, share: float = 0.1, images: int = 100) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(seed)
    sizes = [(300, 300)] * images
    targets = []
    for _ in range(images):
        corners = torch.tensor([[10.0, 20], [160, 20], [20, 170], [170, 160]]) + torch.rand(4, 2, generator=random) * 30
        boxes = torch.cat([corners, corners + 60 + torch.rand(4, 2, generator=random) * 40], 1)
        targets.append({"boxes": boxes, "labels": torch.randint(1, 4, (4,), generator=random)})
    wrong, planted = plant(targets, sizes, 3, share=share, seed=seed)
    return wrong, simulate(targets, sizes, 3, MIDDLING, seed), planted


@pytest.mark.parametrize(("seed", "share"), [(1, 0.1), (2, 0.03)])
def test_planted_errors_of_other_random_numbers_are_detected(seed: int, share: float) -> None:
    wrong, detections, planted = planted_set(seed, share)
    suspects = audit(wrong, detections)
    result = figures(suspects, planted, first=len(planted))
    assert result["all"] > 0.85
    assert all(result[kind] > 0.4 for kind in KINDS)
    # The score is the chance of an error, and its sum their number.
    hits = [error is not None for error in flags(suspects, planted)]
    assert calibration_error([suspect.score for suspect in suspects], hits) < 0.12
    assert 0.6 * sum(hits) < sum(suspect.score for suspect in suspects) < 2 * len(planted)

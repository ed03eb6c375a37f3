"""What the benchmarks time beside ours does what it is named after: the same choice or gradient, by another way."""

import pytest
from benchmarks.rivals import ClassLossApart, Gathered, PerImage, Plain, WholeNMS

from ohem.detection.fast_rcnn import FastRCNN
from ohem.recording import Recorder
from ohem.samplers import OHEMSampler
from tests.detection.test_fast_rcnn import assert_close, detector, losses_and_gradients, mini_batch


def as_rival(kind: type[FastRCNN], recorder: Recorder) -> FastRCNN:
    model = detector(recorder, "loss_layer" if kind is Gathered else "read_only").double()
    model.__class__ = kind
    return model


@pytest.mark.parametrize("kind", [Plain, Gathered])
def test_the_plain_ways_choose_and_learn_the_same(kind: type[FastRCNN]) -> None:
    ours, theirs = Recorder(OHEMSampler(8)), Recorder(WholeNMS(8))
    expected = losses_and_gradients(detector(ours).double(), mini_batch())
    found = losses_and_gradients(as_rival(kind, theirs), mini_batch())
    assert ours.chosen is not None
    assert theirs.chosen is not None
    assert sorted(ours.chosen.tolist()) == sorted(theirs.chosen.tolist())
    for some, others in zip(found, expected, strict=True):
        assert_close(some, others)


def test_mmdetections_rule_is_our_preset() -> None:
    ours, theirs = Recorder(OHEMSampler.mmdetection(8)), Recorder(ClassLossApart(8))
    expected, _ = losses_and_gradients(detector(ours).double(), mini_batch())
    found, _ = losses_and_gradients(as_rival(PerImage, theirs), mini_batch())
    assert ours.chosen is not None
    assert theirs.chosen is not None
    assert sorted(ours.chosen.tolist()) == sorted(theirs.chosen.tolist())
    assert_close(found, expected)

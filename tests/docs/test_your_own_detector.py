"""The sampler and the model of docs/your-own-detector.md do what the page says, in less than 20 lines."""

from typing import Any

import pytest
import torch

from ohem import RoIs
from tests.docs.pages import ROOT, blocks, run_python

PAGE = ROOT / "docs" / "your-own-detector.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    return run_python(PAGE)


def test_sampler_and_model_are_short() -> None:
    _, _, sampler, _, _, model, _ = blocks(PAGE, "python")
    for block in (sampler, model):
        assert len([line for line in block.splitlines() if line.strip()]) < 20


def test_sampler_takes_hard_rois_and_a_minimum_per_image(names: dict[str, Any]) -> None:
    labels = torch.tensor([1, 0, 0, -1, 0, 0])
    images = torch.tensor([0, 0, 0, 0, 1, 1])
    rois = RoIs(torch.rand(6, 4), images, labels, torch.zeros(6, 4), torch.zeros(6), 2)
    losses = torch.tensor([2.0, 3.0, 0.1, 9.0, 0.2, 0.3])
    assert names["ThresholdSampler"](1.0, 1)(rois, lambda: losses).tolist() == [0, 1, 5]
    assert names["ThresholdSampler"](5.0, 2)(rois, lambda: losses).tolist() == [0, 1, 4, 5]


def test_model_trains_on_the_chosen_rois(names: dict[str, Any]) -> None:
    model = names["model"]
    assert isinstance(model, names["YourDetector"])
    features, labels = torch.randn(2, 8), torch.randint(0, 4, (2, 100))
    loss = model(features, labels)["loss"]
    numbers = model.mining.statistics()
    assert (numbers["chosen"], numbers["rois"]) == (64, 200)
    torch.testing.assert_close(loss.item(), numbers["loss_chosen"])
    assert numbers["loss_chosen"] > numbers["loss_all"]

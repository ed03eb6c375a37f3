"""What the network is shown of an image."""

import torch

from ohem.data.loader import prepare


def test_boxes_are_resized_and_the_area_of_the_original_is_left_behind() -> None:
    target = {
        "boxes": torch.tensor([[1.0, 2.0, 11.0, 22.0]]),
        "labels": torch.tensor([3]),
        "ignore": torch.tensor([True]),
        "area": torch.tensor([150.0]),
    }
    example = prepare("a", torch.zeros(3, 40, 50, dtype=torch.uint8), [[0, 0, 50, 40]], target, short=80, long=200)
    assert example.scale == 2
    assert {name: values.tolist() for name, values in example.target.items()} == {
        "boxes": [[2, 4, 22, 44]],
        "labels": [3],
        "ignore": [True],
    }
    assert example.proposals.tolist() == [[0, 0, 100, 80]]

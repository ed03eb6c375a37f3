"""The order, scale and flip of training images: a function of (seed, position) alone."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ohem.data.loader import (
    Example,
    Examples,
    ImagePyramids,
    TrainingExamples,
    TrainingPyramids,
    collate_list,
    make_pyramid,
    positions,
    prepare_example,
)
from ohem.data.transforms import resize, scale_factor

SCALES = (24, 32, 48)


class Noise:
    """Holds three images of 20 x 30 pixels with one object each."""

    classes = ("thing",)
    ids = ["a", "b", "c"]  # noqa: RUF012

    def __len__(self) -> int:
        return 3

    def image(self, index: int) -> Tensor:
        return torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)

    def target(self, index: int) -> dict[str, Tensor]:
        return {"boxes": torch.tensor([[1.0, 2.0, 11.0, 12.0]]) + index, "labels": torch.tensor([1])}


PROPOSALS = {name: [[0, 0, 10, 10], [3, 4, 25, 18], [1, 1, 5, 5]] for name in Noise.ids}
EXAMPLES = Examples(Noise(), PROPOSALS, short=40, long=60, top=2)


def sequence(seed: int = 0, scales: tuple[int, ...] = SCALES, flips: bool = True) -> TrainingExamples:
    return TrainingExamples(EXAMPLES, seed=seed, flips=flips, scales=scales)


def same(a: Example, b: Example) -> bool:
    return (
        (a.id, a.position, a.scale) == (b.id, b.position, b.scale)
        and torch.equal(a.image, b.image)
        and torch.equal(a.proposals, b.proposals)
        and torch.equal(a.target["boxes"], b.target["boxes"])
    )


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_function_of_seed_and_position(seed: int, position: int) -> None:
    assert same(sequence(seed)[position], sequence(seed)[position])


def test_an_order_is_drawn_once_in_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    count, jumps = len(EXAMPLES), [0, 3, 1, 4, 2, 5, 0, 9, 6, 10, 7, 11]
    expected = [sequence()[position] for position in jumps]
    drawn: list[object] = []
    rng = np.random.default_rng
    monkeypatch.setattr("numpy.random.default_rng", lambda seed: drawn.append(seed) or rng(seed))
    one = sequence()
    assert all(same(one[position], example) for position, example in zip(jumps, expected, strict=True))
    assert len(drawn) == 4  # each of the epochs 0 to 3 once
    for epoch in range(3):
        assert sorted(one[epoch * count + i].id for i in range(count)) == Noise.ids


def test_a_single_scale_is_used_for_all_images() -> None:
    without = TrainingExamples(EXAMPLES, seed=3, flips=True)
    assert all(same(without[p], sequence(3, (40,))[p]) for p in range(12))
    assert all(same(without[p], sequence(3, ())[p]) for p in range(12))
    assert {without[p].scale for p in range(12)} == {2.0}


def test_scales_change_nothing_but_the_size() -> None:
    """Checks that order and flips are those of one scale, and that only the size of image and boxes differs."""
    for position in range(12):
        one, several = sequence(3, (40,))[position], sequence(3)[position]
        assert one.id == several.id
        torch.testing.assert_close(one.proposals / one.scale, several.proposals / several.scale)
        torch.testing.assert_close(one.target["boxes"] / one.scale, several.target["boxes"] / several.scale)
        assert list(several.image.shape[1:]) == [round(20 * several.scale), round(30 * several.scale)]


def test_scales_are_drawn_about_equally_often_and_depend_on_the_seed() -> None:
    shorts = [[round(20 * sequence(seed)[p].scale) for p in range(300)] for seed in (0, 1)]
    # The longest side is at most 60, so that 48 becomes 40.
    counts = Counter(shorts[0])
    assert set(counts) == {24, 32, 40}
    assert min(counts.values()) > 70
    assert shorts[0] != shorts[1]


def test_scale_and_flip_are_independent() -> None:
    drawn = Counter()
    for position in range(200):
        example = sequence(scales=(20, 40))[position]
        image = resize(EXAMPLES.data.image(Noise.ids.index(example.id)), example.scale)
        drawn[example.scale, torch.equal(image, example.image)] += 1
    assert len(drawn) == 4
    assert min(drawn.values()) > 30


def test_an_image_at_several_scales() -> None:
    image = Noise().image(0)
    pyramid = make_pyramid("a", image, [[0, 0, 10, 10]], shorts=(10, 40, 30), long=60)
    assert pyramid.scales == (0.5, 2.0, 1.5)
    assert pyramid.size == (20, 30)
    assert pyramid.proposals.tolist() == [[0, 0, 10, 10]]
    assert all(torch.equal(a, resize(image, s)) for a, s in zip(pyramid.images, pyramid.scales, strict=True))


def test_scales_that_the_long_side_makes_equal_are_used_once() -> None:
    pyramid = make_pyramid("a", Noise().image(0), [], shorts=(30, 48, 50, 30), long=60)
    assert pyramid.scales == (1.5, 2.0)
    assert pyramid.proposals.shape == (0, 4)


@pytest.mark.parametrize("shorts", [(40,), (20, 40)])
def test_image_pyramids_have_the_pixels_of_examples(shorts: tuple[int, ...]) -> None:
    pyramids = ImagePyramids(EXAMPLES, shorts=shorts, long=60)
    assert len(pyramids) == 3
    for i in range(3):
        pyramid, example = pyramids[i], EXAMPLES[i]
        assert pyramid.id == example.id
        assert pyramid.scales[-1] == example.scale == scale_factor(20, 30, 40, 60)
        assert torch.equal(pyramid.images[-1], example.image)
        assert torch.equal(pyramid.proposals * pyramid.scales[-1], example.proposals)


def test_boxes_are_resized_and_the_area_is_removed() -> None:
    target = {
        "boxes": torch.tensor([[1.0, 2.0, 11.0, 22.0]]),
        "labels": torch.tensor([3]),
        "ignore": torch.tensor([True]),
        "area": torch.tensor([150.0]),
    }
    example = prepare_example(
        "a", torch.zeros(3, 40, 50, dtype=torch.uint8), [[0, 0, 50, 40]], target, short=80, long=200
    )
    assert example.scale == 2
    assert {name: values.tolist() for name, values in example.target.items()} == {
        "boxes": [[2, 4, 22, 44]],
        "labels": [3],
        "ignore": [True],
    }
    assert example.proposals.tolist() == [[0, 0, 100, 80]]


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_training_pyramid_has_all_sizes_of_an_image(seed: int, position: int) -> None:
    pyramid = TrainingPyramids(sequence(seed))[position]
    assert [min(example.image.shape[1:]) for example in pyramid] == [24, 32, 40]  # the long side is 60
    drawn = sequence(seed)[position]
    assert sum(same(drawn, example) for example in pyramid) == 1
    assert {(example.id, example.position, example.mirrored_width) for example in pyramid} == {
        (drawn.id, position, drawn.mirrored_width)
    }
    assert [len(collate_list([pyramid, pyramid])), len(collate_list([drawn]))] == [2 * len(SCALES), 1]


def test_processes_share_the_positions_of_a_step() -> None:
    """Those of all steps would take gigabytes for a run of millions of them, in this process and in every worker."""
    assert list(positions(1, 3, 4)) == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert [next(positions(1, 10**15, 4, rank, 2)) for rank in (0, 1)] == [[4, 6], [5, 7]]

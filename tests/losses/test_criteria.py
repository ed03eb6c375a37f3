"""`OHEMLoss` with every loss of torch, segmentation-models-pytorch, timm and MONAI: it mines, or says why it cannot."""

import inspect
import re
import warnings
from functools import partial
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ohem import OHEMLoss
from tests.integrations.optional import import_quietly

OPTIONS: dict[str, Any] = {
    "num_classes": 5,
    "in_features": 6,
    "classes": 5,
    "dim": 2,
    "spatial_dims": 2,
    "class_counts": [3.0] * 6,
    "num_samples": 20,
    "dist_matrix": 1.0 - torch.eye(5).numpy(),
    "loss": nn.MSELoss(reduction="none"),
    "epsilon": 1.0,
}
"""Arguments of the losses that need some, by name."""
NOT_CRITERIA = {
    *("PerceptualLoss", "JukeboxLoss"),  # compare the features of networks, whose weights they download
    *("BendingEnergyLoss", "DiffusionLoss", "PatchAdversarialLoss", "SURELoss"),  # have no target
}
# Before MONAI 1.6 the first three could not be mined, and the last did not exist.
BEFORE = version("monai") < "1.6"
OF_MONAI = {"MaskedDiceLoss", "SoftDiceclDiceLoss", "SoftclDiceLoss"} if BEFORE else {"AUCMLoss"}
REFUSED = re.compile(
    r"(the criterion returned a single number, and mining needs|criterion must give|the criterion must return losses).*"
    r'(make it \w+\(reduction="none"\)|\w+ has no argument reduction: make it|was given reduction="none": give it)|'
    "the criterion must return losses, a tensor|valid must be"
)


def inputs() -> list[tuple[Tensor, ...]]:
    """Returns arguments of all kinds of losses: maps, vectors, pairs, triplets, sequences and boxes."""
    torch.manual_seed(0)
    maps, classes = torch.randn(2, 5, 12, 12), torch.randint(0, 5, (2, 12, 12))
    one_hot = functional.one_hot(classes, 5).permute(0, 3, 1, 2).float()
    rows, labels, signs = torch.randn(6, 6), torch.randint(0, 5, (6,)), torch.tensor([1.0, -1.0] * 3)
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 3.0, 3.0]])
    sequences = torch.randn(12, 3, 7).log_softmax(2), torch.randint(1, 7, (3, 4))
    return [
        *((maps, target) for target in (classes, one_hot)),
        (maps.sigmoid(), one_hot),
        (maps[:, :1], (classes > 2)[:, None].float()),
        *((rows, target) for target in (labels, torch.rand(6, 6), (torch.rand(6, 6) > 0.5).long())),
        (torch.sigmoid(rows), torch.rand(6, 6)),
        *((rows, rows.flip(0), third) for third in (rows.roll(1, 0), rows.abs(), signs)),
        (rows[:, 0], rows[:, 1], signs),
        (*sequences, torch.full((3,), 12), torch.full((3,), 4)),
        (boxes, boxes * 0.9 + 0.1),
        (torch.randn(2, 1, 8, 8, 8), torch.randn(2, 1, 8, 8, 8)),
    ]


def kinds(module: Any) -> dict[str, type[nn.Module]]:
    """Returns the losses that `module` has, by name."""
    classes = {kind.__name__: kind for kind in vars(module).values() if inspect.isclass(kind)}
    public = {name: kind for name, kind in classes.items() if name.endswith(("Loss", "Entropy", "Label", "Loss2d"))}
    return {name: kind for name, kind in public.items() if not name.startswith("_") and name not in NOT_CRITERIA}


def criteria(kind: type[nn.Module]) -> list[nn.Module]:
    """Returns instances with `reduction="none"`, as far as the class takes it, and in each of its modes."""
    parameters = inspect.signature(kind).parameters
    options = {name: OPTIONS[name] for name, p in parameters.items() if name in OPTIONS and p.default is p.empty}
    if "smooth_factor" in parameters:
        options["smooth_factor"] = 0.1  # smp's SoftCrossEntropyLoss does not work with its default
    if "reduction" in parameters:
        options["reduction"] = "none"
    modes = [{"mode": mode} for mode in ("binary", "multiclass", "multilabel")] if "mode" in parameters else [{}]
    try:
        return [kind(**options, **mode) for mode in modes]
    except ValueError as error:  # MONAI's DiceCELoss takes "mean" and "sum" alone
        if "Unsupported option 'none'" not in str(error):
            raise
        return [kind()]


def outcome(criterion: nn.Module, arguments: tuple[Any, ...]) -> str:
    """Returns "mined" or "refused", after checks of either; "no input" if the criterion does not take the arguments."""
    try:
        losses = criterion(*arguments)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError):
        return "no input"
    if isinstance(losses, Tensor) and losses.isnan().any():
        return "no input"
    try:
        mined = OHEMLoss(criterion, keep=0.5)
        actual = mined(*arguments)
    except (ValueError, TypeError) as error:
        return "refused" if REFUSED.match(str(error)) else str(error)
    count = max(1, round(0.5 * losses.numel()))
    torch.testing.assert_close(actual, losses.flatten().sort(descending=True).values[:count].mean())
    assert mined.mining["kept"] == count
    return "mined"


def outcomes(module: Any) -> dict[str, set[str]]:
    """Returns the outcomes of every loss of `module`, for the arguments that it takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = inputs()
        results = {name: {outcome(c, a) for c in criteria(kind) for a in given} for name, kind in kinds(module).items()}
    return {name: result - {"no input"} for name, result in results.items()}


@pytest.mark.parametrize(
    ("library", "refused"),
    [
        ("torch.nn.modules.loss", {"NLLLoss2d"}),
        ("segmentation_models_pytorch.losses", {"DiceLoss", "JaccardLoss", "LovaszLoss", "MCCLoss", "TverskyLoss"}),
        (
            "timm.loss",
            {"JsdCrossEntropy", "LabelSmoothingCrossEntropy", "SoftTargetCrossEntropy", "TwoWayLoss", "ZlprLoss"},
        ),
        (
            "monai.losses",
            {"AsymmetricUnifiedFocalLoss", "BarlowTwinsLoss", "ContrastiveLoss", "DiceCELoss", "NACLLoss", *OF_MONAI},
        ),
    ],
)
def test_every_loss_is_mined_or_refused(library: str, refused: set[str]) -> None:
    results = outcomes(import_quietly(library))
    assert len(results) >= 8
    assert {name: result for name, result in results.items() if not result or result - {"mined", "refused"}} == {}
    assert {name for name, result in results.items() if "mined" not in result} == refused


def smp_losses() -> Any:
    return import_quietly("segmentation_models_pytorch.losses")


def test_ignored_pixels_are_left_out_if_the_losses_have_a_channel() -> None:
    """The losses of smp's SoftCrossEntropyLoss are (N, 1, H, W), and 0 for ignored pixels."""
    criterion = OHEMLoss(smp_losses().SoftCrossEntropyLoss("none", smooth_factor=0.1, ignore_index=4), keep=0.5)
    maps, classes = inputs()[0]
    losses = criterion.criterion(maps, classes)
    assert losses.shape == (2, 1, 12, 12)
    actual = criterion(maps, classes)
    assert criterion.mining["examples"] == (classes != 4).sum()
    used = losses[:, 0][classes != 4]
    torch.testing.assert_close(actual, used.sort(descending=True).values[: round(0.5 * len(used))].mean())


def test_flattened_losses_are_not_of_images() -> None:
    maps, classes = inputs()[0]
    criterion = OHEMLoss(smp_losses().FocalLoss("binary", reduction="none"), per_image=True)
    with pytest.raises(ValueError, match="a row of losses for each of 2 images, not 288: leave it out"):
        criterion(maps[:, 0], (classes > 2).float())


def test_sum_of_two_criteria_is_mined_if_its_parts_are_not_reduced() -> None:
    """MONAI's DiceFocalLoss has `reduction` "mean" whatever is given, and gives it to its two parts."""
    losses = import_quietly("monai.losses")
    maps, classes = inputs()[0]
    criterion = OHEMLoss(losses.DiceFocalLoss(to_onehot_y=True, reduction="none"), keep=0.5)
    assert criterion(maps, classes[:, None]) > 0
    assert criterion.mining["kept"] == 2 * 5 * 12 * 12 / 2
    with pytest.raises(ValueError, match=r'make it DiceFocalLoss\(reduction="none"\)'):
        OHEMLoss(losses.DiceFocalLoss(to_onehot_y=True))


def test_loss_without_an_argument_reduction_gets_another_remedy() -> None:
    with pytest.raises(ValueError, match="every example: DiceLoss has no argument reduction: make it return"):
        OHEMLoss(smp_losses().DiceLoss("binary"))


def test_remedy_of_a_function() -> None:
    maps, classes = inputs()[0]
    for criterion in (functional.cross_entropy, partial(functional.cross_entropy, ignore_index=4)):
        with pytest.raises(ValueError, match=r'make it functools.partial\(cross_entropy, reduction="none"\)'):
            OHEMLoss(criterion)(maps, classes)

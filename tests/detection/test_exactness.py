"""The read-only pass and the selection choose the same RoIs as the paper's two passes, written plainly.

The images are real, with selective-search boxes; every backbone runs in float32 and under autocast, with each rule of
suppression. The plain pass pools every RoI with torchvision's kernel and runs all of them through PyTorch's layers.
"""

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, roi_pool

from ohem.data.dataset import DetectionSet
from ohem.data.loader import Examples
from ohem.data.sources import open_dataset
from ohem.detection.backbones import BACKBONES, init_head
from ohem.detection.fast_rcnn import FastRCNN
from ohem.detection.weights import load_weights
from ohem.kernels.fast_linear import ROWS
from ohem.losses import roi_losses
from ohem.proposals.selective_search import selective_search
from ohem.rois import IGNORE, RoIs, match
from ohem.samplers import OHEMSampler
from tests.helpers.reference import SHARED, needs_shared

KEPT = 12
SAMPLERS = {
    "within the image": OHEMSampler(KEPT),
    "within image and label": OHEMSampler(KEPT, suppress="label"),
    "of the mini-batch": OHEMSampler(KEPT, per_image=False),
}


@cache
def batch() -> tuple[list[Tensor], RoIs]:
    """Returns two photographs of blood cells, about 250 pixels high, and RoIs of 25 proposals each."""
    data: DetectionSet = open_dataset([f"{SHARED}/data/bccd:test"])
    names = data.ids[:2]
    pixels = [data.image(i).flip(0).permute(1, 2, 0).numpy() for i in range(len(names))]
    proposals = {name: selective_search(image, width=250) for name, image in zip(names, pixels, strict=True)}
    examples = Examples(data, proposals, short=250, long=420, top=25)
    network_input = [examples[i] for i in range(2)]
    return [e.image for e in network_input], match(
        [e.proposals for e in network_input], [e.target for e in network_input]
    )


@cache
def network(name: str) -> FastRCNN:
    """Returns a detector in train mode without dropout, with ImageNet's weights if available, and different losses."""
    torch.manual_seed(0)
    model = FastRCNN(BACKBONES[name](), 4, OHEMSampler(KEPT))
    weights = SHARED / "weights" / f"{name}_imagenet_fp16.safetensors"
    if weights.is_file():
        load_weights(model.backbone, weights)
        init_head(model.backbone, batch()[0])
    for layer in (model.scores, model.deltas):
        nn.init.normal_(layer.weight, std=3 * model.backbone.dim**-0.5)
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return model


def plain_losses(model: FastRCNN, features: Tensor, rois: RoIs) -> Tensor:
    size = model.backbone.pool_size
    with torch.no_grad():
        pooled = roi_pool(features.float(), model.windows(rois).float(), (size, size))
        # A kernel of bfloat16 sums in another order for another number of rows; the fast pass has a multiple of them.
        pooled = torch.cat([pooled, pooled.new_zeros(-len(pooled) % ROWS, *pooled.shape[1:])])
        scores, deltas = (part[: len(rois)] for part in model._outputs(model.backbone.roi_head(pooled)))
        classification, box = roi_losses(scores, deltas, rois)
    return classification + box


def plain_choice(sampler: OHEMSampler, losses: Tensor, rois: RoIs) -> list[int]:
    """Runs NMS over all RoIs and takes the hardest of each image, or of all; ties go to the first index."""
    order = losses.argsort(descending=True, stable=True)
    order = order[rois.labels[order] != IGNORE]
    groups = rois.images * 100 + (rois.labels if sampler.suppress == "label" else 0)
    rank = torch.arange(len(order), 0, -1).double()
    kept = order[batched_nms(rois.boxes[order].double(), rank, groups[order], 0.7)]
    if not sampler.per_image:
        return kept[: KEPT * rois.num_images].tolist()
    return torch.cat([kept[rois.images[kept] == image][:KEPT] for image in range(rois.num_images)]).tolist()


@needs_shared
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bfloat16"])
def test_the_fast_pass_is_the_plain_one(name: str, mixed: bool) -> None:
    model, (images, rois) = network(name), batch()
    assert len(rois) > 60
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), torch.no_grad():
        features = model.backbone(images)
        expected = plain_losses(model, features, rois)
        actual = model.read_only_losses(features, rois)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        for sampler in SAMPLERS.values():
            chosen = sampler(rois, lambda **_: actual).tolist()
            assert len(set(chosen)) == KEPT * 2
            assert set(chosen) == set(plain_choice(sampler, expected, rois))

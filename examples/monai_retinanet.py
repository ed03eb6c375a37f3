"""Trains MONAI's RetinaNet to detect cubes in small noisy volumes, on the hardest anchors.

pip install monai
python examples/monai_retinanet.py [--steps 30]
"""

import argparse

import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.data.box_utils import box_iou
from torch import Tensor, nn

from ohem import OHEMSampler, with_ohem


def make_batch(size: int, rng: torch.Generator) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Makes volumes (N, 1, 20, 20, 20) with a bright cube, and a hollow one that must not be detected."""
    volumes = 0.2 * torch.rand(size, 1, 20, 20, 20, generator=rng)
    targets = []
    for volume in volumes[:, 0]:
        left, right = torch.randint(0, 3, (3,), generator=rng), torch.randint(10, 13, (3,), generator=rng)
        cube, hollow = (left, right) if torch.rand((), generator=rng) < 0.5 else (right, left)
        for corner, inside in ((cube, 1.0), (hollow, 0.0)):
            x, y, z = corner.tolist()
            volume[x : x + 8, y : y + 8, z : z + 8] = 1
            volume[x + 2 : x + 6, y + 2 : y + 6, z + 2 : z + 6] = inside
        targets.append(
            {"boxes": torch.cat([cube, cube + 8])[None].float(), "labels": torch.zeros(1, dtype=torch.int64)}
        )
    return volumes, targets


def make_detector() -> RetinaNetDetector:
    """Makes a detector of one class with one feature map of stride 2 and one anchor per cell."""
    layers = [nn.Conv3d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.ReLU()]
    backbone = nn.Sequential(*layers)
    backbone.out_channels = 16
    network = RetinaNet(spatial_dims=3, num_classes=1, num_anchors=1, feature_extractor=backbone, size_divisible=2)
    detector = RetinaNetDetector(network, AnchorGeneratorWithAnchorShape((1,), [[8, 8, 8]]))
    detector.set_regular_matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.3)
    detector.set_box_selector_parameters(score_thresh=0.05, topk_candidates_per_level=20, detections_per_img=1)
    # Instead of detector.set_hard_negative_sampler(batch_size_per_image=64, positive_fraction=0.5).
    return with_ohem(detector, OHEMSampler(batch_size=32))  # anchors per volume


def main(steps: int) -> float:
    """Trains for `steps` steps, and returns the mean IoU of the best detection in new volumes with the cube."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    detector = make_detector()
    optimizer = torch.optim.Adam(detector.network.parameters(), lr=0.005)
    for step in range(steps):
        losses = detector(*make_batch(2, rng))
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            mined = detector.mining.statistics()
            print(
                f"step {step}: {mined['chosen']:.0f} of {mined['rois']:.0f} anchors chosen, "
                f"mean loss {mined['loss_chosen']:.3f} (all anchors: {mined['loss_all']:.3f})"
            )

    volumes, targets = make_batch(8, rng)
    with torch.no_grad():
        detections = detector.eval()(volumes)
    ious = [box_iou(d["boxes"], t["boxes"]).sum() for d, t in zip(detections, targets, strict=True)]
    iou = float(sum(ious)) / len(ious)
    print(f"mean IoU with the cube: {iou:.2f}")
    return iou


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="number of training steps")
    main(parser.parse_args().steps)

"""Measures a training step of torchvision's Faster R-CNN as it is, and with `with_ohem`.

    python -m benchmarks.torchvision_step --data FOLDER:SPLIT --out torchvision_step.json

The network is `fasterrcnn_mobilenet_v3_large_320_fpn` or, with `--backbone resnet50`, `fasterrcnn_resnet50_fpn`. Both
models begin with the same random weights and take the same images; the sizes of images are options. torchvision trains
on 512 random RoIs of an image, `with_ohem` on the `--batch-size` hardest.
"""

import argparse
from functools import partial

import torch
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, fasterrcnn_resnet50_fpn

from benchmarks.common import announce, make_parser, print_table, run_main, seconds_in_turns, write_report
from ohem.data.dataset import DetectionSet
from ohem.errors import InputError
from ohem.inputs.datasets import open_data
from ohem.integrations import with_ohem
from ohem.samplers import OHEMSampler

MODELS = {"mobilenet_v3_large": fasterrcnn_mobilenet_v3_large_320_fpn, "resnet50": fasterrcnn_resnet50_fpn}


def main() -> None:
    options = _options()
    announce(f"a step of Faster R-CNN, {options.backbone}, {options.images} images of short side {options.short}")
    data = open_data([options.data], (), "--data")
    images, targets = _batch(data, options.images)
    device = torch.device(options.device)
    images = [image.to(device) for image in images]
    targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
    models = [_model(options, len(data.classes) + 1).to(device) for _ in range(2)]
    with_ohem(models[1], OHEMSampler(options.batch_size))
    methods = dict(zip(("torchvision", "with_ohem"), models, strict=True))
    steps = {name: partial(_step, model, _optimizer(model), images, targets) for name, model in methods.items()}
    times = seconds_in_turns(steps, options.rounds)
    base = times["torchvision"]["median"]
    table = Table("method", "s/step", "ratio", title=f"Faster R-CNN, {options.backbone}, {len(images)} images")
    for name, seconds in times.items():
        table.add_row(name, f"{seconds['median']:.3f}", f"{seconds['median'] / base:.2f}")
    print_table(table)
    sizes = {name: getattr(options, name) for name in ("backbone", "short", "long", "batch_size")}
    write_report(options.out, {**sizes, "images": len(images), "seconds": times})


def _batch(data: DetectionSet, count: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Returns the first `count` images with objects, float (3, H, W) in 0..1, and their targets."""
    images, targets = [], []
    for index in range(len(data)):
        target = data.target(index)
        counted = ~target["ignore"]
        if counted.any():
            images.append(data.image(index).float() / 255)
            targets.append({name: target[name][counted] for name in ("boxes", "labels")})
        if len(images) == count:
            return images, targets
    raise InputError(f"--data has {len(images)} images with objects, and --images is {count}: give fewer")


def _model(options: argparse.Namespace, classes: int) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"min_size": options.short, "max_size": options.long}
    model: nn.Module = MODELS[options.backbone](weights=None, weights_backbone=None, num_classes=classes, **sizes)
    return model.train()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> None:
    optimizer.zero_grad()
    losses: dict[str, Tensor] = model(images, targets)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if images[0].device.type != "cpu":
        torch.accelerator.synchronize()


def _options() -> argparse.Namespace:
    parser = make_parser(__doc__, rounds=5)
    parser.set_defaults(short=320, long=640)
    parser.add_argument("--backbone", default="mobilenet_v3_large", choices=list(MODELS), help="network")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--images", type=int, default=2, help="images of a step")
    parser.add_argument("--batch-size", type=int, default=128, help="RoIs of an image that with_ohem trains on")
    return parser.parse_args()


if __name__ == "__main__":
    run_main(main)

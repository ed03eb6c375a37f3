"""YOLO11n of ultralytics trained with mining, on images that it generates.

    pip install ultralytics
    python examples/ultralytics_yolo.py

`with_ohem` takes the object `YOLO(...)`; the rest of the script stays as it is. A real training begins with the weights
`yolo11n.pt`. Here the network is made from its YAML file, so that nothing is downloaded.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torchvision.io import write_png
from ultralytics import YOLO

from ohem import RatioSampler, with_ohem

SIZE = 96


def draw(folder: Path, images: int) -> Path:
    """Draws `images` images of one bright square each, in the layout of ultralytics. Returns the path of data.yaml."""
    rng = torch.Generator().manual_seed(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(images):
        image = torch.randint(0, 120, (3, SIZE, SIZE), dtype=torch.uint8, generator=rng)
        x, y = torch.randint(0, SIZE - 32, (2,), generator=rng).tolist()
        image[:, y : y + 32, x : x + 32] = 250
        write_png(image, str(folder / "images" / f"{number}.png"))
        box = [(x + 16) / SIZE, (y + 16) / SIZE, 32 / SIZE, 32 / SIZE]
        (folder / "labels" / f"{number}.txt").write_text(f"0 {' '.join(map(str, box))}\n")
    yaml = folder / "data.yaml"
    yaml.write_text(f"path: {folder.resolve()}\ntrain: images\nval: images\nnames: [square]\n")
    return yaml


def main(epochs: int, folder: Path) -> None:
    data = draw(folder / "data", images=8)
    model = YOLO("yolo11n.yaml")
    # All foreground, and the hardest background: three for each, and at least 16 in each image.
    model = with_ohem(model, RatioSampler(3, min_negatives=16))
    model.train(data=str(data), epochs=epochs, batch=4, imgsz=SIZE, device="cpu", plots=False, project=str(folder))
    print(model.mining)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for images and weights; a temporary one by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(arguments.epochs, arguments.out or Path(temporary))

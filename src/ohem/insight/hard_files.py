"""The folder that `ohem hard` writes: hard.json, hardest.jpg, pictures/ and regions/."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ohem.data.dataset import DetectionSet
from ohem.data.transforms import resize
from ohem.detection.draw import draw_detections, draw_side_by_side
from ohem.errors import InputError
from ohem.evaluation.detect import is_drawn, save_picture
from ohem.inputs.negatives import is_region_content
from ohem.io.files import is_leftover, remove_leftovers
from ohem.io.json_files import write_json
from ohem.io.locks import locked
from ohem.proposals.generate import FOLDER as PROPOSALS

NAME, SHEET, PICTURES, REGIONS = "hard.json", "hardest.jpg", "pictures", "regions"
_LOCK = f".{NAME}.lock"
MARGIN = 0.5
"""Context around a region in regions/ and on the sheet, as a share of its sides."""
VISIBLE_IOU = 0.1
"""Highest IoU with an object of a region in regions/, where a detector is trained on all that it sees."""
GREY = 114
"""Grey of hidden pixels: that of the borders that YOLO adds."""
TILE, COLUMNS = 192, 8


class Region(NamedTuple):
    """A false positive that is background."""

    image_index: int
    """Index of the image in the data set."""
    image: Path
    box: tuple[float, ...]
    """[x1, y1, x2, y2] in pixels of the upright image."""
    label: str
    """Class that it was taken for."""
    score: float
    overlap: float
    """Highest IoU with an object."""


def check_place(out: Path, data: DetectionSet | None = None) -> None:
    """Raises `InputError` where a file of another origin, or one of `data`, would be overwritten."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: name a folder with --out")
    for path in _files(out):
        if not (is_region_content(path) if path.name == NAME and path.parent == out else is_drawn(path)):
            raise InputError(f"{path} is no file of `ohem hard`: name another folder with --out")
    if data is not None:
        place = out.resolve()
        inside = next((path for path in data.files() if path.resolve().is_relative_to(place)), None)
        if inside is not None:
            raise InputError(f"{inside} is read by this command, and lies in {out}: name another folder with --out")


def _files(out: Path) -> list[Path]:
    """Returns all files of the folder, except locks, temporary files of killed processes, and proposals of regions/."""
    places = [out, out / PICTURES, out / REGIONS]
    known = [*places, out / REGIONS / PROPOSALS]  # proposals have digests of their images, and are made again
    paths = [path for place in places if place.is_dir() for path in sorted(place.iterdir())]
    return [path for path in paths if path not in known and path.name != _LOCK and not is_leftover(path)]


def write_regions(out: Path, regions: Sequence[Region], data: DetectionSet, origin: str, draw: int) -> None:
    """Writes the folder; files of an earlier call are replaced.

    Args:
        out: the folder.
        regions: the regions, the hardest first.
        data: the images and their objects.
        origin: run or file that the detections are of.
        draw: number of regions that are drawn.
    """
    for place in (out, out / PICTURES, out / REGIONS):
        place.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place)
    with locked(out / _LOCK, f"the folder {out}"):
        check_place(out, data)
        for path in _files(out):
            path.unlink()
        of_image: dict[int, list[Region]] = {}
        for region in regions:
            of_image.setdefault(region.image_index, []).append(region)
        drawn = {region.image_index for region in regions[:draw]}
        tiles: dict[Region, Tensor] = {}
        for number, (index, here) in enumerate(of_image.items(), start=1):
            image, name = data.image(index), f"{number:05d}-{data.path(index).stem}.jpg"
            alone = show_regions(image, here, data.target(index)["boxes"])
            if alone is not None:
                save_picture(alone, out / REGIONS / name)
            if index in drawn:
                save_picture(_draw(image, here), out / PICTURES / name)
                tiles |= {region: _tile(image, region) for region in here if region in regions[:draw]}
        if tiles:
            save_picture(_sheet([(region, tiles[region]) for region in regions[:draw]]), out / SHEET)
        write_json(out / NAME, _content(regions, origin))


def _content(regions: Sequence[Region], origin: str) -> dict[str, object]:
    entries = [
        {
            "image": str(region.image),
            "box": [round(value, 2) for value in region.box],
            "label": region.label,
            "score": round(region.score, 6),
            "overlap": round(region.overlap, 4),
        }
        for region in regions
    ]
    return {"detections": origin, "regions": entries}


def show_regions(image: Tensor, regions: Sequence[Region], objects: Tensor) -> Tensor | None:
    """Returns the image with all pixels grey except those of the regions, with some context; None if none is left.

    Regions that overlap an object by more than `VISIBLE_IOU`, and the pixels of objects, are grey too.

    Args:
        image: uint8 (3, H, W).
        regions: regions of the image.
        objects: boxes (G, 4) of all objects, ignored ones too.
    """
    visible = torch.zeros(image.shape[1:], dtype=torch.bool)
    for region in regions:
        if region.overlap <= VISIBLE_IOU:
            x1, y1, x2, y2 = _with_context(region.box, image)
            visible[y1:y2, x1:x2] = True
    for x1, y1, x2, y2 in objects.tolist():
        visible[int(y1) : int(-(-y2 // 1)), int(x1) : int(-(-x2 // 1))] = False
    return torch.where(visible, image, torch.full_like(image, GREY)) if visible.any() else None


def _with_context(box: Sequence[float], image: Tensor) -> tuple[int, int, int, int]:
    (x1, y1, x2, y2), (height, width) = box, image.shape[1:]
    across, down = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
    left, top = max(0, int(x1 - across)), max(0, int(y1 - down))
    return left, top, max(left + 1, min(width, round(x2 + across))), max(top + 1, min(height, round(y2 + down)))


def _draw(image: Tensor, regions: Sequence[Region]) -> Tensor:
    boxes = torch.tensor([region.box for region in regions])
    return draw_detections(image, boxes, [region.label for region in regions], [region.score for region in regions])


def _tile(image: Tensor, region: Region) -> Tensor:
    """Returns the region in a square of its surroundings, with its box and label, uint8 (3, TILE, TILE)."""
    x1, y1, x2, y2 = region.box
    half = (0.5 + MARGIN) * max(x2 - x1, y2 - y1)
    left, top = (max(0, int(middle - half)) for middle in ((x1 + x2) / 2, (y1 + y2) / 2))
    side, scale = max(1, round(2 * half)), TILE / max(1, round(2 * half))
    crop = resize(image[:, top : top + side, left : left + side], scale)[:, :TILE, :TILE]
    tile = torch.full((3, TILE, TILE), GREY, dtype=torch.uint8)
    tile[:, : crop.shape[1], : crop.shape[2]] = crop
    box = (torch.tensor(region.box) - torch.tensor([left, top, left, top])) * scale
    return draw_detections(tile, box[None], [region.label], [region.score])


def _sheet(tiles: Sequence[tuple[Region, Tensor]]) -> Tensor:
    """Returns the tiles in rows, with the names of the images above them."""
    empty = torch.full((3, TILE, TILE), 24, dtype=torch.uint8)
    columns = min(COLUMNS, len(tiles))
    rows = []
    for start in range(0, len(tiles), columns):
        row = [(region.image.stem[:24], tile) for region, tile in tiles[start : start + columns]]
        row += [("", empty)] * (columns - len(row))
        rows.append(draw_side_by_side(*(tile for _, tile in row), titles=[title for title, _ in row]))
    return torch.cat(rows, dim=1)

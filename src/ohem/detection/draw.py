"""Pictures of detections: boxes with names and scores, and pictures next to each other under titles."""

import colorsys
from collections.abc import Sequence
from zlib import crc32

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from ohem.recorder import Recorder

Colour = tuple[int, int, int]
Area = tuple[int, int, int, int]
"""Left, top, right and bottom of a label in pixels, end exclusive."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
PADDING = 2  # pixels between the text of a label and its edge
OPACITY = 150  # of 255, of the background of a label
BACKDROP: Colour = (24, 24, 24)
# Sky blue and orange differ for the colour-blind too.
FOREGROUND: Colour = (86, 180, 233)
BACKGROUND: Colour = (230, 159, 0)


def draw_detections(
    image: Tensor, boxes: Tensor, names: Sequence[str], scores: Sequence[float] | None = None
) -> Tensor:
    """Draws every box with its label, "name 0.93", or the name alone without scores.

    The first boxes are drawn on top, and their labels are placed first: give the best detections first. A name has the
    same colour in every picture. Labels are half-transparent, lie inside the picture, and do not overlap each other
    where there is room.

    Args:
        image: uint8 (3, H, W), RGB.
        boxes: (D, 4) `[x1, y1, x2, y2]` in pixels, end exclusive.
        names: D class names.
        scores: D numbers in 0..1; None for boxes without scores, such as the ground truth.

    Returns:
        uint8 (3, H, W).

    Raises:
        ValueError: the numbers of boxes, names and scores differ.
    """
    labels = names if scores is None else [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    return _draw_labelled(image, list(zip(boxes.round().int().tolist(), map(_colour, names), labels, strict=True)))


def draw_hardest(
    mining: Recorder, images: Sequence[Tensor], titles: Sequence[str], classes: Sequence[str], *, most: int = 12
) -> Tensor:
    """Draws the hardest of the chosen RoIs of the last mini-batch: foreground blue, background orange.

    A label has the class and the loss of the RoI, as used for the ranking. Of a sampler that does not call the losses,
    a few of the chosen RoIs are drawn, without losses.

    Args:
        mining: the recorder of the detector, after a step.
        images: the images of the mini-batch, uint8 (3, H, W), RGB, in the size in which the network got them.
        titles: a title for each image.
        classes: names of the labels 1..K.
        most: highest number of RoIs of an image.

    Returns:
        uint8 (3, H', W'): the images next to each other under their titles.

    Raises:
        ValueError: nothing was mined yet, or the numbers of images and titles differ.
    """
    if mining.rois is None or mining.chosen is None:
        raise ValueError("draw_hardest needs mined RoIs: train a step first")
    rois = mining.rois[mining.chosen]
    losses = None if mining.losses is None else mining.losses[mining.chosen]
    pictures = []
    for number, image in enumerate(images):
        here = (rois.images == number).nonzero().flatten()
        if losses is None:
            here = here[:: max(1, -(-len(here) // most))]
        else:
            here = here[losses[here].argsort(descending=True)][:most]
        names = [classes[label - 1] if label > 0 else "background" for label in rois.labels[here].tolist()]
        colours = [FOREGROUND if foreground else BACKGROUND for foreground in rois.foreground[here].tolist()]
        texts = (
            names
            if losses is None
            else [f"{name} {loss:.2f}" for name, loss in zip(names, losses[here].tolist(), strict=True)]
        )
        boxes = rois.boxes[here].round().int().tolist()
        pictures.append(_draw_labelled(image, list(zip(boxes, colours, texts, strict=True))))
    return draw_side_by_side(*pictures, titles=titles)


def _draw_labelled(image: Tensor, drawn: Sequence[tuple[list[int], Colour, str]]) -> Tensor:
    """Draws boxes in their colours with their labels, the first ones on top."""
    picture = _draw_boxes(image, drawn)
    font = _font(picture.size)
    placed: list[Area] = []
    for box, _, label in drawn:
        width, height = (extent + 2 * PADDING for extent in _text_size(label, font))
        placed.append(_place_label(box, (width, height), picture.size, placed))
    overlay = Image.new("RGBA", picture.size)
    canvas = ImageDraw.Draw(overlay)
    for area, (_, colour, label) in reversed(list(zip(placed, drawn, strict=True))):
        _draw_label(canvas, area, label, colour, font)
    result: Tensor = pil_to_tensor(Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB"))
    return result


def _draw_boxes(image: Tensor, drawn: Sequence[tuple[list[int], Colour, str]]) -> Image.Image:
    """Draws the boxes, the last one first."""
    if not drawn:
        return to_pil_image(image)  # type: ignore[no-any-return]
    # The last pixel of a box is drawn on, so that it is the one before the end; every box has at least one pixel.
    corners = [[x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)] for (x1, y1, x2, y2), _, _ in reversed(drawn)]
    colours = [colour for _, colour, _ in reversed(drawn)]
    line = max(1, round(min(image.shape[1:]) / 180))
    return to_pil_image(  # type: ignore[no-any-return]
        draw_bounding_boxes(image, torch.tensor(corners), colors=colours, width=line)
    )


def _place_label(box: list[int], extent: tuple[int, int], size: tuple[int, int], placed: Sequence[Area]) -> Area:
    """Returns the area of the label of `box`: the first place in the picture that no placed label covers."""
    (x1, y1, x2, y2), (width, height) = box, extent
    left = max(0, min(x1, size[0] - width))
    right = max(0, min(x2 - width, size[0] - width))
    lowest = max(0, size[1] - height)
    # Above the box, inside its top, below it, inside its bottom; then any other height, the nearest first.
    heights = [y1 - height, y1, y2, y2 - height, *sorted(range(0, lowest + 1, height), key=lambda y: abs(y - y1))]
    inside = [(x, y, x + width, y + height) for y in heights if 0 <= y <= lowest for x in (left, right)]
    free = (area for area in inside if not any(_overlap(area, other) for other in placed))
    corner = (left, 0, left + width, height)
    return next(free, inside[0] if inside else corner)


def _overlap(first: Area, second: Area) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def draw_side_by_side(*pictures: Tensor, titles: Sequence[str]) -> Tensor:
    """Puts pictures, uint8 (3, H, W), from left to right under their titles, with aligned tops.

    Returns:
        uint8 (3, H', W').

    Raises:
        ValueError: the numbers of titles and pictures differ.
    """
    heights, widths = zip(*(picture.shape[1:] for picture in pictures), strict=True)
    font = _font((max(widths), max(heights)), larger=1.3)
    gap = _text_size("Ag", font)[1]
    sheet = Image.new("RGB", (sum(widths) + gap * (len(pictures) + 1), max(heights) + 3 * gap), BACKDROP)
    canvas = ImageDraw.Draw(sheet)
    x = gap
    for picture, title, width in zip(pictures, titles, widths, strict=True):
        canvas.text((x, gap // 2), title, fill="white", font=font)
        sheet.paste(to_pil_image(picture), (x, 2 * gap))
        x += width + gap
    result: Tensor = pil_to_tensor(sheet)
    return result


def _draw_label(canvas: ImageDraw.ImageDraw, area: Area, label: str, colour: Colour, font: Font) -> None:
    """Draws a label on its half-transparent colour."""
    x1, y1, x2, y2 = area
    canvas.rectangle((x1, y1, x2 - 1, y2 - 1), fill=(*colour, OPACITY))
    # Black on light colours, white on dark ones, by their luma (ITU-R BT.601).
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 128
    canvas.text((x1 + PADDING, y1 + PADDING), label, fill="black" if light else "white", font=font)


def _font(size: tuple[int, int], larger: float = 1.0) -> Font:
    """Returns Pillow's scalable font in a readable height for a picture of (width, height)."""
    return ImageFont.load_default(larger * max(9.0, min(size) / 28))


def _text_size(text: str, font: Font) -> tuple[int, int]:
    """Returns (width, height) in pixels of the text; the height is that of a full line."""
    right, bottom = (font.getbbox(sample)[index] for sample, index in ((text, 2), ("Ag", 3)))
    return round(right + 0.5), round(bottom + 0.5)


def _colour(name: str) -> Colour:
    """Returns a bright colour that depends only on the name."""
    code = crc32(name.encode())
    hue, saturation = code % 360 / 360, 0.65 + 0.35 * (code // 360 % 8) / 7
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)

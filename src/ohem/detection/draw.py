"""Pictures of detections: boxes with their names and scores, and pictures side by side under captions."""

import colorsys
from collections.abc import Sequence
from zlib import crc32

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
PADDING = 2  # pixels between a label's text and its edge
BACKDROP: Colour = (24, 24, 24)


def draw_detections(
    image: Tensor, boxes: Tensor, names: Sequence[str], scores: Sequence[float] | None = None
) -> Tensor:
    """A copy of `image` with every box and its label: "name 0.93", or the name alone where there are no scores.

    The first boxes are drawn on top: give the best ones first. A name has the same colour in every picture, and labels
    lie inside the picture.

    Args:
        image: uint8 (3, H, W), RGB.
        boxes: (D, 4) `[x1, y1, x2, y2]` in pixels, end exclusive.
        names: D class names.
        scores: D numbers in 0..1; None for boxes without, as the ground truth.

    Returns:
        uint8 (3, H, W).

    Raises:
        ValueError: boxes, names and scores are not of one number.
    """
    labels = names if scores is None else [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    drawn = list(zip(boxes.tolist(), map(_colour, names), labels, strict=True))[::-1]
    picture = to_pil_image(image)
    canvas = ImageDraw.Draw(picture)
    line, font = max(1, round(min(picture.size) / 180)), _font(picture.size)
    for (x1, y1, x2, y2), colour, _ in drawn:
        left, top = round(x1), round(y1)
        canvas.rectangle((left, top, max(left, round(x2) - 1), max(top, round(y2) - 1)), outline=colour, width=line)
    for box, colour, label in drawn:
        _draw_label(canvas, picture.size, box, label, colour, font)
    result: Tensor = pil_to_tensor(picture)
    return result


def draw_side_by_side(*pictures: Tensor, titles: Sequence[str]) -> Tensor:
    """The pictures, uint8 (3, H, W) each, from left to right under their titles, tops aligned: one uint8 (3, H', W').

    Raises ValueError if there are not as many titles as pictures.
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


def _draw_label(
    canvas: ImageDraw.ImageDraw, size: tuple[int, int], box: list[float], label: str, colour: Colour, font: Font
) -> None:
    """The label on its colour: above the box, or inside its top edge where there is no room above."""
    width, height = (extent + 2 * PADDING for extent in _text_size(label, font))
    x = max(0, min(round(box[0]), size[0] - width))
    y = round(box[1]) - height
    if y < 0:
        y = max(0, min(round(box[1]), size[1] - height))
    canvas.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    # Black on light colours, white on dark ones, by their luma (ITU-R BT.601).
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 128
    canvas.text((x + PADDING, y + PADDING), label, fill="black" if light else "white", font=font)


def _font(size: tuple[int, int], larger: float = 1.0) -> Font:
    """Pillow's own scalable font, as high as reads well in a picture of this (width, height)."""
    return ImageFont.load_default(larger * max(9.0, min(size) / 28))


def _text_size(text: str, font: Font) -> tuple[int, int]:
    """(width, height) in pixels that the text needs when drawn from its top left corner; the height of a full line."""
    right, bottom = (font.getbbox(sample)[index] for sample, index in ((text, 2), ("Ag", 3)))
    return round(right + 0.5), round(bottom + 0.5)


def _colour(name: str) -> Colour:
    """A bright colour that depends on the name alone."""
    code = crc32(name.encode())
    hue, saturation = code % 360 / 360, 0.65 + 0.35 * (code // 360 % 8) / 7
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)

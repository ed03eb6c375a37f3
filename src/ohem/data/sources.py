"""Opens data sets of any format; the form of a source names its format."""

from collections.abc import Sequence

from ohem.data.coco import COCODetection, is_coco
from ohem.data.dataset import DetectionSet
from ohem.data.voc import VOCDetection
from ohem.data.yolo import YOLODetection, is_yolo
from ohem.errors import InputError

FORMS = f"{VOCDetection.form}, {COCODetection.form} or {YOLODetection.form}"


def open_dataset(
    sources: Sequence[str],
    classes: Sequence[str] | None = None,
    *,
    annotated: bool = True,
    skip_others: bool = False,
) -> DetectionSet:
    """Opens the data set of `sources`, whose form, the same for all, names their format.

    `classes`, `annotated` and `skip_others` are as for `DetectionSet`.

    Raises:
        InputError: the sources have several forms, or as `DetectionSet` does.
    """
    kinds = [_kind_of(text) for text in sources] or [VOCDetection]
    other = next((i for i, kind in enumerate(kinds) if kind is not kinds[0]), None)
    if other is not None:
        raise InputError(
            f"{sources[0]!r} is {kinds[0].layout} and {sources[other]!r} {kinds[other].layout}, which cannot be mixed "
            "(their names for the same classes differ): convert one of them"
        )
    return kinds[0](sources, classes, annotated=annotated, skip_others=skip_others)


def _kind_of(text: str) -> type[VOCDetection | COCODetection | YOLODetection]:
    return COCODetection if is_coco(text) else YOLODetection if is_yolo(text) else VOCDetection

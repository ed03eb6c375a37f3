"""Opens data sets of any format; the form of a source names its format."""

from collections.abc import Sequence

from ohem.data.coco import COCODetection, is_coco
from ohem.data.dataset import DetectionSet
from ohem.data.voc import VOCDetection
from ohem.errors import InputError

FORMS = f"{VOCDetection.form} or {COCODetection.form}"


def open_dataset(
    sources: Sequence[str],
    classes: Sequence[str] | None = None,
    *,
    annotated: bool = True,
    skip_others: bool = False,
) -> DetectionSet:
    """Opens the data set of `sources`, which are all `FOLDER:SPLIT` or all `ANNOTATIONS.json:IMAGES`.

    `classes`, `annotated` and `skip_others` are as for `DetectionSet`.

    Raises:
        InputError: the sources have both forms, or as `DetectionSet` does.
    """
    coco = [text for text in sources if is_coco(text)]
    if coco and len(coco) < len(sources):
        other = next(text for text in sources if not is_coco(text))
        raise InputError(
            f"{other!r} is in VOC layout and {coco[0]!r} in COCO's format, which cannot be mixed (their names for "
            "the same classes differ): convert one of them"
        )
    kind = COCODetection if coco else VOCDetection
    return kind(sources, classes, annotated=annotated, skip_others=skip_others)

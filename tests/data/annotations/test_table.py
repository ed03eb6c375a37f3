"""The table of annotations: what it returns is what was put in."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ohem.data.annotations.annotation import Annotation, Frame
from ohem.data.annotations.table import AnnotationTable

TURNED = Frame((20, 10), (10, 20), 6, has_exif=True)


def one(name: str, *objects: tuple[str, float, bool], area: bool = True, frame: Frame = TURNED) -> Annotation:
    """Returns an annotation with an object for each (class, left side, ignored)."""
    boxes = np.array([[left, 1, left + 2, 4] for _, left, _ in objects], np.float32).reshape(-1, 4)
    areas = np.array([left for _, left, _ in objects], np.float32) if area else None
    names, ignore = [name for name, _, _ in objects], [flag for _, _, flag in objects]
    return Annotation(Path(f"{name}.xml"), Path(f"bilder/{name}.jpg"), frame, names, boxes, ignore, areas)


CAT_AND_DOG = one("a", ("cat", 3, False), ("dog", 5, True))
EMPTY = one("b", frame=Frame((4, 6), (4, 6)))
DOGS = one("ü\udcff", ("dog", 1, False), ("dog", 2, False), area=False)
ALL = [CAT_AND_DOG, EMPTY, DOGS]


def plain(annotation: Annotation) -> tuple[Any, ...]:
    area = None if annotation.area is None else annotation.area.tolist()
    rest = annotation.names, annotation.boxes.tolist(), annotation.ignore, area
    return annotation.file, annotation.image, annotation.frame, *rest


def check(table: AnnotationTable, expected: list[Annotation]) -> None:
    assert len(table) == len(expected)
    assert list(map(plain, table)) == list(map(plain, expected))


def test_it_returns_what_it_was_made_of() -> None:
    table = AnnotationTable.of(ALL)
    check(table, ALL)
    check(pickle.loads(pickle.dumps(table)), ALL)
    assert plain(table[-1]) == plain(DOGS)
    assert table.boxes.dtype == np.float32
    with pytest.raises(IndexError):
        table[3]


@pytest.mark.parametrize("kept", [[], [2], [0, 2], [2, 1, 0], [1]], ids=str)
def test_images_can_be_taken(kept: list[int]) -> None:
    check(AnnotationTable.of(ALL).take(kept), [ALL[i] for i in kept])


@pytest.mark.parametrize("at", range(4))
def test_tables_can_be_joined(at: int) -> None:
    check(AnnotationTable.of(ALL[:at]).joined(AnnotationTable.of(ALL[at:])), ALL)


def test_slices_are_tables() -> None:
    check(AnnotationTable.of(ALL)[1:], ALL[1:])


def test_objects_of_other_classes_are_left_out() -> None:
    table = AnnotationTable.of(ALL).of_classes(["dog"])
    check(table, [one("a", ("dog", 5, True)), EMPTY, DOGS])
    assert table.objects_by_class(ignored=True) == {"dog": 3}
    check(AnnotationTable.of([EMPTY]).of_classes(["dog"]), [EMPTY])


def test_objects_are_counted_in_the_order_of_the_first() -> None:
    table = AnnotationTable.of(ALL)
    assert list(table.objects_by_class(ignored=True).items()) == [("cat", 1), ("dog", 3)]
    assert table.objects_by_class(ignored=False) == {"cat": 1, "dog": 2}


def test_file_of_the_first_object_of_some_classes() -> None:
    table = AnnotationTable.of([EMPTY, EMPTY, DOGS, CAT_AND_DOG])
    assert table.file_of({"cat"}) == "a.xml"
    assert table.file_of({"cat", "dog"}) == str(DOGS.file)

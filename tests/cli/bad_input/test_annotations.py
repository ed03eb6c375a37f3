"""Bad annotations: an error names the file and the field; what can be corrected is counted in a warning."""

from pathlib import Path

import pytest

from ohem.training.logs.metrics_log import read_metrics
from tests.helpers.command_line import ohem, sentence
from tests.helpers.toy_data import edit_xml, training


def test_malformed_xml(run: Path, data: Path) -> None:
    path = edit_xml(data, "</annotation>", "")
    text = sentence(ohem("train", run, *training(data)))
    assert str(path) in text
    assert "well-formed" in text


def test_entity_bomb(run: Path, data: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]><annotation>'
    path = edit_xml(data, "<annotation>", bomb)
    text = sentence(ohem("train", run, *training(data)))
    assert str(path) in text
    assert "entities" in text


def test_missing_size_is_read_from_the_image(run: Path, data: Path) -> None:
    path = edit_xml(data, "<size><width>80</width><height>64</height><depth>3</depth></size>", "")
    with pytest.warns(UserWarning, match=f"took the size of 1 image from the image, .* the first of them {path}"):
        assert ohem("train", run, *training(data)).code == 0


def test_size_must_be_that_of_the_image(run: Path, data: Path) -> None:
    edit_xml(data, "<width>80</width>", "<width>800</width>")
    text = sentence(ohem("train", run, *training(data)))
    assert "800 x 64" in text
    assert "80 x 64" in text


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((-10, 5, 20, 30), "clipped 1 box reaching outside the image"),
        ((5, 5, 120, 30), "clipped 1 box reaching outside the image"),
        ((30, 5, 10, 30), "skipped 1 box inverted or without area"),
        ((10, 10, 10, 10), "skipped 1 box inverted or without area"),
    ],
)
def test_corrected_boxes_are_counted_in_one_warning(
    run: Path, data: Path, box: tuple[int, int, int, int], message: str
) -> None:
    xmin, ymin, xmax, ymax = box
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    edit_xml(data, "</annotation>", f"<object><name>red</name><bndbox>{corners}</bndbox></object></annotation>")
    with pytest.warns(UserWarning, match=message) as warned:
        assert ohem("train", run, *training(data)).code == 0
    assert len(warned) == 1


def test_unknown_class_of_the_test_data_names_the_nearest(run: Path, data: Path) -> None:
    path = edit_xml(data, "<name>red</name>", "<name>rde</name>", stem="g")
    text = sentence(ohem("train", run, *training(data)))
    assert str(path) in text
    assert "'rde'" in text
    assert "did you mean 'red'" in text


def test_data_without_objects_are_refused(run: Path, data: Path) -> None:
    for path in (data / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().split("<object>")[0].removesuffix("</annotation>\n") + "</annotation>")
    assert "has no object" in sentence(ohem("train", run, *training(data)))


def test_image_without_objects_is_trained_on(run: Path, data: Path) -> None:
    path = data / "Annotations" / "a.xml"
    path.write_text(path.read_text().split("<object>")[0] + "</annotation>")
    (data / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    assert ohem("train", run, *training(data)).code == 0
    rows = read_metrics(run)
    assert float(rows[-1]["chosen"]) > 0
    assert float(rows[-1]["loss"]) > 0

"""YAML that is read is what was written, and what is nested too deeply is refused."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ohem.io.yaml_texts import LOADER, format_yaml, parse_yaml

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
LISTS = st.lists(PLAIN, max_size=3)
NESTED = st.dictionaries(st.text(), PLAIN | LISTS | st.dictionaries(st.text(), LISTS, max_size=2), max_size=3)


@given(NESTED)
def test_content_is_read_as_it_was_written(content: dict[str, object]) -> None:
    assert parse_yaml(format_yaml(content)) == content


def test_mappings_keep_their_order_and_letters_are_written_as_they_are() -> None:
    assert format_yaml({"b": 1, "a": ["é"]}) == "b: 1\na:\n- é\n"


@pytest.mark.parametrize("loader", [LOADER, yaml.SafeLoader])
@pytest.mark.parametrize(
    "text", ["[" * 1100, "\n".join(" " * i + "a:" for i in range(1200))], ids=["lists", "mappings"]
)
def test_deep_nesting_is_refused(text: str, loader: type[yaml.SafeLoader]) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text, loader)

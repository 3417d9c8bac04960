"""Where a value goes: behind anchors, tags and comments in the place of another, or where there was none."""

from __future__ import annotations

import pytest
import yaml

from autobatch.edits.yaml_values import set_values
from autobatch.errors import EditError


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        pytest.param("packed:", "packed: True", id="nothing, not even a newline"),
        pytest.param("packed:\n", "packed: True\n", id="nothing"),
        pytest.param("packed: \n", "packed: True \n", id="a space"),
        pytest.param("packed:\t\n", "packed: True\t\n", id="a tab"),
        pytest.param("packed: # c\n", "packed: True # c\n", id="a comment"),
        pytest.param("packed:  # c\n", "packed: True  # c\n", id="a comment further off"),
        pytest.param("packed: &a\n", "packed: &a True\n", id="an anchor alone"),
        pytest.param("packed: &a # c\n", "packed: &a True # c\n", id="an anchor and a comment"),
        pytest.param("? packed\n:\n", "? packed\n: True\n", id="a key with a mark of its own"),
        pytest.param("? packed\n: # c\n", "? packed\n: True # c\n", id="the same with a comment"),
        pytest.param("{packed}", "{packed: True}", id="a flow mapping's only key, without a colon"),
        pytest.param("{packed, seed: 1}\n", "{packed: True, seed: 1}\n", id="one without a colon"),
        pytest.param(
            "{ packed , seed: 1}\n", "{ packed : True, seed: 1}\n", id="one without a colon, and space"
        ),
        pytest.param("{packed: , seed: 1}\n", "{packed: True, seed: 1}\n", id="one with a colon"),
        pytest.param('{"packed":, x: 1}\n', '{"packed": True, x: 1}\n', id="a quoted one with a colon"),
        pytest.param("{? packed, x: 1}\n", "{? packed: True, x: 1}\n", id="one with a mark, without a colon"),
        pytest.param("packed: &a 4 # c\n", "packed: &a True # c\n", id="an anchor"),
        pytest.param("packed: &a\t4\n", "packed: &a\tTrue\n", id="an anchor and a tab"),
        pytest.param("packed: ! 4\n", "packed: ! True\n", id="the tag that says nothing"),
        pytest.param("packed: &a\r\n  4\r\n", "packed: &a\r\n  True\r\n", id="an anchor on its own line"),
        pytest.param(
            "packed: &a  # why\n\n  4\nx: 1\n", "packed: &a  # why\n\n  True\nx: 1\n", id="comments between"
        ),
        pytest.param("packed: |\n  text\n\nx: 1\n", "packed: True\n\nx: 1\n", id="a block scalar"),
        pytest.param("packed: |\n", "packed: True\n", id="an empty block scalar"),
        pytest.param("packed: |\n\n\nx: 1\n", "packed: True\n\n\nx: 1\n", id="one of empty lines"),
        pytest.param(
            "packed: >+\n  text\n\n\nx: 1\n", "packed: True\n\n\nx: 1\n", id="one that keeps its newlines"
        ),
        pytest.param("packed: |  # c\nx: 1\n", "packed: True  # c\nx: 1\n", id="an empty one with a comment"),
        pytest.param(
            "packed: |2-  # c\n   text\nx: 1\n", "packed: True  # c\nx: 1\n", id="one with a comment"
        ),
        pytest.param("packed: &a |\n  text\n# end\n", "packed: &a True\n# end\n", id="an anchored one"),
        pytest.param("packed: '| # no header'\n", "packed: True\n", id="a quoted text like a header"),
        pytest.param("packed: Xyz\n", "packed: True\n", id="a word"),
    ],
)
def test_a_value_takes_the_place_of_another(text: str, edited: str) -> None:
    assert set_values(text, {("packed",): True}) == edited


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        pytest.param("n: !!int 4 # c\n", "n: !!int 24 # c\n", id="a tag"),
        pytest.param("n: &a !!int 4\n", "n: &a !!int 24\n", id="an anchor and a tag"),
        pytest.param("n: !!int &a 4\n", "n: !!int &a 24\n", id="a tag and an anchor"),
        pytest.param("n: !<tag:yaml.org,2002:int> 4\n", "n: !<tag:yaml.org,2002:int> 24\n", id="a whole tag"),
        pytest.param("n: !!int\n  # & why\n  4\n", "n: !!int\n  # & why\n  24\n", id="a comment between"),
        pytest.param("m: {n: !!int 4, x: &b 1}\n", "m: {n: !!int 24, x: &b 1}\n", id="in a flow mapping"),
    ],
)
def test_a_tagged_value_keeps_its_tag(text: str, edited: str) -> None:
    path = ("m", "n") if text.startswith("m") else ("n",)

    assert set_values(text, {path: 24}) == edited


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        pytest.param("{a: 4, n: }", "{a: 4, n: , packed: True }", id="empty"),
        pytest.param('{a: 4, n: ":"}', '{a: 4, n: ":", packed: True}', id="a colon"),
        pytest.param("{a: 4}", "{a: 4, packed: True}", id="one digit"),
    ],
)
def test_an_entry_goes_behind_the_last_of_a_flow_mapping(text: str, edited: str) -> None:
    assert set_values(text, {("packed",): True}, loader=yaml.SafeLoader) == edited


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("packed: !!null\nx: 1\n", id="a tag that says null"),
        pytest.param("packed: !!int 4\n", id="one that says int"),
        pytest.param("packed: !t 4\n", id="one of the user's"),
        pytest.param("? packed\n", id="a key without a colon"),
        pytest.param("? packed\nx: 1\n", id="the same above another"),
        pytest.param("{packed\n, seed: 1}\n", id="a colon would stand on the next line"),
    ],
)
def test_a_value_that_has_no_place_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(EditError, match=r"run\.yaml:1: packed can't be set"):
        set_values(text, {("packed",): True}, name="run.yaml")

"""What other programs say, as plain values: `gala.answers`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gala.answers import MAX_COUNT, count, items, json_file, json_object, mapping, number, text

DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize("content", [b'{"a": 1}', '{"a": 1}'])
def test_an_object_is_read_from_bytes_and_from_text(content: bytes | str) -> None:
    assert json_object(content) == {"a": 1}


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"3", b"null", b'{"a": 1', b"\xff\xfe\x00", DEEP, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_any_other_text_is_no_object(content: bytes) -> None:
    assert json_object(content) is None


def test_a_file_gives_its_object_and_an_empty_one_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    assert json_file(path) == json_file(tmp_path) == {}
    path.write_bytes(b'{"globalSteps": 80}')
    assert json_file(path) == {"globalSteps": 80}
    path.write_bytes(DEEP)
    assert json_file(path) == {}


def test_values_of_another_type_are_empty_or_none() -> None:
    assert (text(3), text("a"), text(None, "none")) == ("", "a", "none")
    assert (mapping([1]), mapping({"a": 1})) == ({}, {"a": 1})
    assert (items("ab"), items([1, {"a": 1}, None])) == ([], [{"a": 1}])


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), float("-inf"), 10**400])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert number(value) is None
    assert count(value) is None


def test_a_count_is_whole_and_within_what_json_holds_exactly() -> None:
    assert number(-1.5) == -1.5
    assert [count(value) for value in (-1, 0, 2.0, MAX_COUNT, MAX_COUNT + 2)] == [None, 0, 2, MAX_COUNT, None]

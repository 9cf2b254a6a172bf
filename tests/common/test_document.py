"""Strict YAML: every broken file is one clear SpecError, and what kubectl reads as a number is one here too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gala import document
from gala.errors import SpecError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param("# nothing\n", "is empty", id="comment only"),
        pytest.param("---\n---\n", "is empty", id="empty documents"),
        pytest.param("- a\n", "must hold a mapping, not a list", id="list"),
        pytest.param("hello", "must hold a mapping, not text", id="text"),
        pytest.param("3", "must hold a mapping, not a number", id="number"),
        pytest.param("a: 1\n---\nb: 2\n", "holds several documents (another begins at line 3)", id="several documents"),
        pytest.param("a: 1\na: 2\n", "a: stands twice (lines 1 and 2); remove one of the two", id="duplicate"),
        pytest.param("a: {b: {c: 1,\n c: 2}}", "a.b.c: stands twice (lines 1 and 2)", id="nested duplicate"),
        pytest.param("a:\n- {b: 1, b: 2}\n", "a[0].b: stands twice", id="duplicate in a list"),
        pytest.param("a:\n\tb: 1\n", "line 2, column 1", id="tab place"),
        pytest.param("a:\n\tb: 1\n", "indent with spaces, not tabs", id="tab remedy"),
        pytest.param("a: [1, 2\nb: 3", "is not valid YAML at line", id="unclosed"),
        pytest.param("a: b: c", "is not valid YAML at line 1", id="two colons"),
        pytest.param("a: *nobody", "is not valid YAML at line 1", id="unknown alias"),
        pytest.param("{a: 1}}", "is not valid YAML", id="one brace too many"),
        pytest.param(
            "a: !!python/object/apply:os.system [ls]",
            "a: has a YAML tag that GALA does not read, got '!!python/object/apply:os.system'; remove it",
            id="python object",
        ),
        pytest.param("a: [!!binary aGk=]", "a[0]: has a YAML tag that GALA does not read, got '!!binary'", id="binary"),
        pytest.param("a: !!timestamp 2024-01-01", "GALA does not read, got '!!timestamp'; remove it", id="timestamp"),
        pytest.param("!!set {a}", "f.yaml: has a YAML tag that GALA does not read, got '!!set'", id="set"),
        pytest.param("a: !!omap [b: 1]", "a: has a YAML tag that GALA does not read, got '!!omap'", id="omap"),
        pytest.param("a: !mine 1", "a: has a YAML tag that GALA does not read, got '!mine'", id="own tag"),
        pytest.param("a: !!bool foo", "a: is not what its YAML tag !!bool says, got 'foo'; remove", id="no truth"),
        pytest.param("a: !!int 1.5", "a: is not what its YAML tag !!int says, got '1.5'; remove", id="no integer"),
        pytest.param("a: !!float x", "a: is not what its YAML tag !!float says, got 'x'; remove", id="no number"),
        pytest.param("a: !!float .inf", "a: must be a finite number", id="infinity"),
        pytest.param("a: !!null foo", "a: is not what its YAML tag !!null says, got 'foo'; remove", id="no null"),
        pytest.param("!!null foo", "f.yaml: is not what its YAML tag !!null says, got 'foo'", id="no null in all"),
        pytest.param("a: !!int [1]", "a: is not what its YAML tag !!int says; remove the tag", id="list as integer"),
        pytest.param("a: !!float {b: 1}", "a: is not what its YAML tag !!float says", id="mapping as number"),
        pytest.param("a: !!bool [1]", "a: is not what its YAML tag !!bool says", id="list as truth value"),
        pytest.param("a: !!null {b: 1}", "a: is not what its YAML tag !!null says", id="mapping as null"),
        pytest.param("a: !!str [1]", "a: is not what its YAML tag !!str says", id="list as text"),
        pytest.param("a: !!seq {b: 1}", "a: is not what its YAML tag !!seq says", id="mapping as list"),
        pytest.param("a: !!map b", "a: is not what its YAML tag !!map says", id="text as mapping"),
        pytest.param("a: {<<: !!int [1]}", "a: is not what its YAML tag !!int says", id="merged tag"),
        pytest.param("!!int 1: a", "has a key that is not text (line 1), got '1'", id="tagged key"),
        pytest.param("a: \x01", "is not valid YAML", id="control character"),
        pytest.param("1: a", "has a key that is not text (line 1), got '1'; put the key in quotes", id="number as key"),
        pytest.param("on: a", "has a key that is not text", id="truth value as key"),
        pytest.param("[a]: b", "has a key that is not text", id="list as key"),
        pytest.param("a: .nan", "a: must be a finite number", id="nan"),
        pytest.param("a: [1e999]", "a[0]: must be a finite number", id="overflow"),
        pytest.param("a: " + "9" * 5000, "holds a value that cannot be read", id="thousands of digits"),
        pytest.param("a: " + "[" * 100 + "]" * 100, "is nested deeper than 64 levels", id="deep"),
        pytest.param("[" * 100_000, "is nested deeper than 64 levels", id="very deep"),
        pytest.param("a: &a [*a]", "is nested deeper than 64 levels", id="around itself"),
        pytest.param(BOMB, "holds more than 20000 values, aliases included", id="alias bomb"),
        pytest.param(MERGE_BOMB, "holds more than 20000 values, aliases included", id="merge bomb"),
    ],
)
def test_a_broken_text_is_one_clear_problem(text: str, sentence: str) -> None:
    with pytest.raises(SpecError) as error:
        document.parse(text, "f.yaml")
    assert sentence in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_all_duplicates_are_listed() -> None:
    with pytest.raises(SpecError) as error:
        document.parse("a: 1\nb: {c: 1, c: 2}\na: 3\n", "f.yaml")
    assert [problem.path for problem in error.value.problems] == ["b.c", "a"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7e-4", 7e-4), ("7E-4", 7e-4),
        ("1e3", 1000.0), ("4.", 4.0), (".5", 0.5), ("-1.5e+2", -150.0),
        ("0.0007", 7e-4), ("40_000_000", 40_000_000), ("0x10", 16), ("0o17", 15), ("0b11", 3),
        ("-3", -3), ("0", 0), ("+5", 5),
        ("true", True), ("off", False), ("~", None), ("", None), ("null", None), ("'8'", "8"), ("None", "None"),
        ("2024-01-01", "2024-01-01"), ("12:30", "12:30"), ("007", "007"), ("500m", "500m"),
        ("falſe", "falſe"), ("yeſ", "yeſ"), ("!!bool YES", True), ("!!bool 'off'", False), ("!!int '3'", 3),
        ("!!float 3", 3.0), ("!!float 7e-4", 7e-4), ("!!str 3", "3"), ("!!null ~", None), ("!!null", None),
        ("! 3", 3), ("!!seq [1]", [1]), ("!!map {b: 1}", {"b": 1}),
        ("1.2.3", "1.2.3"), ("e5", "e5"), ("nullable", "nullable"), ("[1, a]", [1, "a"]), ("{b: 1}", {"b": 1}),
    ],
)  # fmt: skip
def test_values_are_read_as_kubectl_reads_them(text: str, value: object) -> None:
    read = document.parse(f"a: {text}", "f.yaml")["a"]
    assert (type(read), read) == (type(value), value)


def test_anchors_and_merge_keys_work() -> None:
    data = document.parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n", "f.yaml")
    assert data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


def test_a_marker_before_and_an_empty_document_after_do_no_harm() -> None:
    assert document.parse("---\na: 1\n---\n# the end\n", "f.yaml") == {"a": 1}


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert document.read(file) == {"a": 1}


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: Jörg".encode("latin-1"))
    huge = tmp_path / "huge.yaml"
    huge.write_text("#" * 300_000)
    for path, sentence in [
        (tmp_path / "none.yaml", "there is no such file"),
        (tmp_path, "is a folder"),
        (latin, "is not UTF-8 text (byte 7); save it as UTF-8"),
        (huge, "is larger than 256 KiB"),
        ("a\0b", "cannot be read"),
    ]:
        with pytest.raises(SpecError) as error:
            document.read(path)
        assert str(error.value).startswith(f"{path}: {sentence}")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%,.0?<\t\n ~=@`", max_size=40))
def test_no_text_gets_anything_but_a_mapping_or_a_spec_error(text: str) -> None:
    try:
        data = document.parse(text, "f.yaml")
    except SpecError:
        return
    assert isinstance(data, dict)


BASE: dict[str, Any] = {"spec": {"learners": 4, "gossip": {"precision": "float32"}}}


@pytest.mark.parametrize(
    ("overrides", "spec"),
    [
        pytest.param(["spec.learners=8"], {"learners": 8, "gossip": {"precision": "float32"}}, id="number"),
        pytest.param(["spec.learners=8", "spec.learners=9"],
                     {"learners": 9, "gossip": {"precision": "float32"}}, id="last"),
        pytest.param(["spec.gossip.everyUpdates=2"],
                     {"learners": 4, "gossip": {"precision": "float32", "everyUpdates": 2}}, id="beside"),
        pytest.param(["spec.a.b.c=7e-4"],
                     {"learners": 4, "gossip": {"precision": "float32"}, "a": {"b": {"c": 7e-4}}}, id="new mappings"),
        pytest.param(["spec.gossip=null"], {"learners": 4, "gossip": None}, id="null"),
        pytest.param(["spec.gossip=~"], {"learners": 4, "gossip": None}, id="tilde"),
        pytest.param(["spec.gossip=''"], {"learners": 4, "gossip": ""}, id="empty text"),
        pytest.param(["spec.gossip={a: [1]}"], {"learners": 4, "gossip": {"a": [1]}}, id="mapping"),
        pytest.param(["spec.gossip.x=a=b"],
                     {"learners": 4, "gossip": {"precision": "float32", "x": "a=b"}}, id="equals"),
    ],
)  # fmt: skip
def test_an_override_sets_one_value(overrides: list[str], spec: dict[str, Any]) -> None:
    assert document.override(BASE, overrides) == {"spec": spec}
    assert BASE == {"spec": {"learners": 4, "gossip": {"precision": "float32"}}}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("spec.learners", "spec.learners: is not an override; write path=value, such as spec.learners=8"),
        ("=8", "=8: is not an override"),
        ("spec.learners=", "spec.learners: has no value; write null to unset it"),
        ("spec.learners=  ", "spec.learners: has no value; write null to unset it"),
        ("spec.learners=# 8", "spec.learners: has no value; write null to unset it"),
        ("spec.learners=---", "spec.learners: has no value; write null to unset it"),
        ("spec..a=8", "spec..a=8: is not an override"),
        ("spec.learners.x=8", "spec.learners.x: cannot be set: spec.learners is a number, not a mapping"),
        ("spec.learners=[1", "spec.learners: is not valid YAML"),
        ("spec.learners={a: 1, a: 2}", "spec.learners.a: stands twice"),
        ("spec.environment.kwargs={a: .nan}", "spec.environment.kwargs.a: must be a finite number, got '.nan'"),
        (" spec.x =[1, {2: 3}]", "spec.x[1]: has a key that is not text (line 1), got '2'; put the key in quotes"),
        (".".join(["spec"] * 3000) + "=1", "spec.spec.spec.spec"),
        ("spec.x=!!bool foo", "spec.x: is not what its YAML tag !!bool says, got 'foo'; remove the tag"),
        ("spec.seed=!!int [1]", "spec.seed: is not what its YAML tag !!int says; remove the tag"),
        ("spec.seed=!!float {a: 1}", "spec.seed: is not what its YAML tag !!float says; remove the tag"),
        ("spec.seed=!!null foo", "spec.seed: is not what its YAML tag !!null says, got 'foo'; remove the tag"),
    ],
)
def test_an_override_that_cannot_be_made_says_why(override: str, sentence: str) -> None:
    with pytest.raises(SpecError) as error:
        document.override(BASE, [override])
    assert str(error.value).startswith(sentence)


def test_an_override_of_any_depth_is_a_line_of_bounded_length() -> None:
    for depth in (65, 3000, 100_000):
        with pytest.raises(SpecError, match=r"\.\.\.: is deeper than 64 levels$") as error:
            document.override(BASE, [".".join(["spec"] * depth) + "=1"])
        assert len(str(error.value)) < 200


def test_all_overrides_that_cannot_be_made_are_listed() -> None:
    with pytest.raises(SpecError) as error:
        document.override(BASE, ["a", "spec.learners=2", "b"])
    assert len(error.value.problems) == 2

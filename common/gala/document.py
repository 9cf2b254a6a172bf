"""Reading a YAML file strictly, and the `a.b=c` overrides of the command line. Knows nothing of GalaRun.

Stricter than PyYAML where PyYAML is silent (duplicate keys, keys that are not text), and like the YAML reader of
kubectl where PyYAML differs from it: `7e-4` is a number, `2024-01-01` and `12:30` are text. Whatever is wrong, the
answer is one SpecError; a hostile file costs bounded time and memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from gala.errors import MAX_SHOWN_VALUE, MISSING, Problem, SpecError

MAX_BYTES: Final = 256 * 1024
"""Of a file. The example files have 1 KiB."""
MAX_NODES: Final = 20_000
"""Values of a document, aliases counted as often as they stand for something: what an alias bomb runs into."""
MAX_DEPTH: Final = 64

_TAGS: Final = "tag:yaml.org,2002:"
"""What `!!` stands for."""
_MERGE_TAG: Final = f"{_TAGS}merge"
_STRING_TAG: Final = f"{_TAGS}str"
_FLOAT_TAG: Final = f"{_TAGS}float"
_INT_TAG: Final = f"{_TAGS}int"
_BOOL_TAG: Final = f"{_TAGS}bool"
_NULL_TAG: Final = f"{_TAGS}null"
_NODES: Final = {
    **dict.fromkeys((_NULL_TAG, _BOOL_TAG, _INT_TAG, _FLOAT_TAG, _STRING_TAG), yaml.ScalarNode),
    f"{_TAGS}seq": yaml.SequenceNode,
    f"{_TAGS}map": yaml.MappingNode,
}
"""The tags that are read, and what may have them."""
_PATTERNS: Final[dict[str, re.Pattern[str]]] = {}
"""What a scalar of a tag looks like; text that looks so has the tag without its being written."""


class _Loader(yaml.SafeLoader):
    """A safe loader for the JSON types only. Its tables are its own: PyYAML's are shared by the whole process."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's interface
    yaml_constructors = {  # noqa: RUF012 - PyYAML's interface
        **{
            f"{_TAGS}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAGS}{kind}"]
            for kind in ("null", "bool", "str", "seq", "map")
        },
        _INT_TAG: lambda _, node: int(node.value.replace("_", ""), 0),
        _FLOAT_TAG: lambda _, node: _float(node.value),
        None: yaml.SafeLoader.construct_undefined,
    }


def _float(text: str) -> float:
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in (
    (_NULL_TAG, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL_TAG, r"(?:yes|no|true|false|on|off)", list("yYnNtTfFoO")),
    (_INT_TAG, r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)", list("-+0123456789")),
    (
        _FLOAT_TAG,
        r"[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9]+(?:e[-+]?[0-9]+)?|[0-9][0-9_]*\.?e[-+]?[0-9]+|[0-9][0-9_]*\.|\.inf)|\.nan",
        list("-+.0123456789"),
    ),
    (_MERGE_TAG, r"<<", ["<"]),
):
    # ASCII: otherwise IGNORECASE takes the long s of falſe for an s.
    _PATTERNS[_tag] = re.compile(rf"(?:{_pattern})\Z", re.IGNORECASE | re.ASCII)
    _Loader.add_implicit_resolver(_tag, _PATTERNS[_tag], _first)


def read(path: str | Path) -> dict[str, Any]:
    """The one mapping in a YAML file.

    Raises: SpecError naming the file, or the place in it.
    """
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        _refuse(name, "there is no such file", "check the name", cause=error)
    except IsADirectoryError as error:
        _refuse(name, "is a folder", "name a file in it", cause=error)
    except (OSError, ValueError) as error:
        _refuse(name, f"cannot be read ({getattr(error, 'strerror', None) or error})", cause=error)
    if len(raw) > MAX_BYTES:
        _refuse(name, f"is larger than {MAX_BYTES // 1024} KiB", "is it the right file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(name, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8", cause=error)
    return parse(text, name)


def parse(text: str, name: str) -> dict[str, Any]:
    """The one mapping in a YAML text; `name` is what the text is called in messages.

    Raises: SpecError, see `read`.
    """
    data = _load(text, name)
    if data is None:
        _refuse(name, "is empty", "write a GalaRun into it; see the examples folder")
    if not isinstance(data, dict):
        _refuse(name, f"must hold a mapping, not {_kind(data)}", "begin with apiVersion: gala.dev/v1alpha1")
    return data


def override(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of the document with assignments such as `spec.learners=8` made, in order. Values are YAML.

    Raises: SpecError with every assignment that cannot be made.
    """
    result = dict(data)
    problems: list[Problem] = []
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.append(
                Problem(path=text, message="is not an override", remedy="write path=value, such as spec.learners=8")
            )
            continue
        if len(keys) > MAX_DEPTH:
            problems.append(Problem(path=f"{path[:MAX_SHOWN_VALUE]}...", message=f"is deeper than {MAX_DEPTH} levels"))
            continue
        try:
            made = _load(value, path, within=path.strip())
            if made is None and not re.search("null|~", value, re.IGNORECASE):
                _refuse(path, "has no value", "write null to unset it")
            _assign(result, keys, made)
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return result


def _assign(target: dict[str, Any], keys: list[str], value: object) -> None:
    """Copies each mapping on the way, so that the caller's document stays as it was."""
    for depth, key in enumerate(keys[:-1]):
        inner = target.get(key)
        if inner is not None and not isinstance(inner, Mapping):
            _refuse(".".join(keys), f"cannot be set: {'.'.join(keys[: depth + 1])} is {_kind(inner)}, not a mapping")
        target[key] = target = dict(inner or {})
    target[keys[-1]] = value


def _load(text: str, name: str, within: str = "") -> Any:
    """Any YAML value; None for nothing at all. `within`: the field it is for, which is named with what is wrong."""
    try:
        loader = _Loader(text)
        try:
            nodes = []
            while loader.check_node():
                node = loader.get_node()
                if node is not None and not _is_null(node):
                    nodes.append(node)
                if len(nodes) > 1:
                    line = nodes[1].start_mark.line + 1
                    _refuse(name, f"holds several documents (another begins at line {line})", "one file, one GalaRun")
            if not nodes:
                return None
            _Check(name).run(nodes[0], within)
            return loader.construct_document(nodes[0])
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context or "it cannot be read"
        tab = "\t" in problem or "\\t" in problem
        _refuse(
            name, f"is not valid YAML{where}: {problem}", "indent with spaces, not tabs" if tab else "", cause=error
        )
    except yaml.YAMLError as error:
        _refuse(name, f"is not valid YAML: {str(error).splitlines()[0]}", cause=error)
    except RecursionError as error:
        _refuse(name, f"is nested deeper than {MAX_DEPTH} levels", cause=error)
    except ValueError as error:  # a number with thousands of digits, an impossible character escape
        _refuse(name, f"holds a value that cannot be read: {error}", cause=error)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL_TAG and _fits(node.value, _NULL_TAG)


def _fits(text: str, tag: str) -> bool:
    """Whether a scalar is what its tag says, which a user may have written: `!!bool maybe`. Any number is a float."""
    tags = (_FLOAT_TAG, _INT_TAG) if tag == _FLOAT_TAG else (tag,)
    return tag not in _PATTERNS or any(_PATTERNS[one].match(text) for one in tags)


class _Check:
    """One walk over the parsed nodes, before anything is made of them: size, depth, double keys, tags, odd values."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes = 0
        self._problems: list[Problem] = []

    def run(self, root: yaml.Node, within: str) -> None:
        self._walk(root, within, 0)
        if self._problems:
            raise SpecError(self._problems)

    def _walk(self, node: yaml.Node, path: str, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            _refuse(self._name, f"holds more than {MAX_NODES} values, aliases included", "shorten it")
        if depth > MAX_DEPTH:  # also what an alias to something around it runs into
            _refuse(self._name, f"is nested deeper than {MAX_DEPTH} levels")
        tag = node.tag.replace(_TAGS, "!!", 1)
        if node.tag not in _NODES:
            self._add(path, "has a YAML tag that GALA does not read", tag, "remove it, or put the value in quotes")
        elif not isinstance(node, _NODES[node.tag]):
            self._add(path, f"is not what its YAML tag {tag} says", MISSING, "remove the tag")
        elif isinstance(node, yaml.MappingNode):
            self._mapping(node, path, depth)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._walk(item, f"{path}[{index}]", depth + 1)
        elif not _fits(node.value, node.tag):
            self._add(path, f"is not what its YAML tag {tag} says", node.value, "remove the tag")
        elif node.tag == _FLOAT_TAG and not math.isfinite(_float(node.value)):
            self._add(path, "must be a finite number", node.value, "")

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> None:
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE_TAG:
                self._walk(value, path, depth + 1)
                continue
            if key.tag != _STRING_TAG or not isinstance(key, yaml.ScalarNode):
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                self._add(path, f"has a key that is not text (line {line})", shown, "put the key in quotes")
                continue
            inner = f"{path}.{key.value}" if path else str(key.value)
            if key.value in lines:
                self._add(
                    inner, f"stands twice (lines {lines[key.value]} and {line})", MISSING, "remove one of the two"
                )
            lines.setdefault(key.value, line)
            self._walk(value, inner, depth + 1)

    def _add(self, path: str, message: str, value: object, remedy: str) -> None:
        self._problems.append(Problem(path=path or self._name, value=value, message=message, remedy=remedy))


def _kind(value: object) -> str:
    match value:
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case _:
            return "a mapping"


def _refuse(path: str, message: str, remedy: str = "", cause: Exception | None = None) -> NoReturn:
    raise SpecError([Problem(path=path, message=message, remedy=remedy)]) from cause

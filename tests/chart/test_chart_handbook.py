"""docs/operator.md explains everything that a status, an event or a metric may say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from gala.status_schema import STATES

ROOT = Path(__file__).parents[2]
CODE = ROOT / "operator" / "gala_operator"
HANDBOOK = (ROOT / "docs" / "operator.md").read_text()
EXPLAINED = set(re.findall(r"`(\w+)`", HANDBOOK))
NAMING = {"essential", "failures", "refused", "ring", "serving", "stuck"}
"""Modules that give reasons names."""
REASON = re.compile(r"(?!SIG)[A-Z][A-Za-z]+")  # failures.py names signals, too


def constants(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and REASON.fullmatch(inner.value):
            yield inner.value


def reasons() -> set[str]:
    """Every constant that the code gives as a reason: of a condition, an outcome, a stuck pod or an event."""
    found: set[str] = set()
    for path in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                found |= set(constants(node.value))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "set":
                found |= {reason for argument in node.args[2:3] for reason in constants(argument)}
            elif isinstance(node, ast.Assign):
                names = {
                    inner.id for target in node.targets for inner in ast.walk(target) if isinstance(inner, ast.Name)
                }
                if "reason" in names:
                    found |= set(constants(node.value))
            elif isinstance(node, ast.AnnAssign) and path.stem in NAMING:
                values = node.value.values if isinstance(node.value, ast.Dict) else [node.value]
                found |= {reason for value in values if value is not None for reason in constants(value)}
    return found


def test_every_reason_is_explained() -> None:
    found = reasons()
    assert {
        "Unschedulable",
        "ErrImagePull",
        "CrashLoopBackOff",
        "InvalidSpec",
        "Forming",
        "ScoreTooLow",
        "LearnerDisrupted",
    } <= found, "the search works"
    assert found - EXPLAINED == set()


def test_every_state_is_explained() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", HANDBOOK.split("## States", 1)[1].split("\n## ", 1)[0], re.MULTILINE))
    assert rows == set(STATES)


def test_every_metric_of_the_operator_is_explained() -> None:
    text = (CODE / "metrics.py").read_text()
    for name in set(re.findall(r'"(galarun_\w+)"', text)):
        assert re.search(rf"`{name}(_total)?[`{{]", HANDBOOK), name


def test_the_files_that_the_handbook_names_exist() -> None:
    for link in re.findall(r"\]\(((?!http|#)[^)#]+)", HANDBOOK):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"(?:-f|helm (?:install|upgrade) gala) ((?:examples|charts)/\S+)", HANDBOOK):
        assert (ROOT / path).exists(), path

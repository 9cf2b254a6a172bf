"""The objects that docs/security.md tells administrators to apply are valid, and do what it says of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import celpy
import kubernetes_validate
import pytest
import yaml

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT.read_text(), flags=re.MULTILINE | re.DOTALL)
OBJECTS: dict[str, dict[str, Any]] = {
    part["kind"]: part for block in BLOCKS for part in yaml.safe_load_all(block) if part is not None
}


@pytest.mark.parametrize("kind", sorted(OBJECTS))
def test_every_manifest_fits_the_newest_kubernetes_schema(kind: str) -> None:
    kubernetes_validate.validate(OBJECTS[kind], kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ({}, True),
        ({"worker": {}}, True),
        ({"worker": {"image": "registry.example.com/mine:1"}}, True),
        ({"worker": {"image": "registry.example.com.evil.org/mine:1"}}, False),
        ({"worker": {"image": "docker.io/mine:1"}}, False),
    ],
    ids=str,
)
def test_the_policy_for_images_lets_only_ones_own_registry_in(spec: dict[str, Any], allowed: bool) -> None:
    (validation,) = OBJECTS["ValidatingAdmissionPolicy"]["spec"]["validations"]
    environment = celpy.Environment()
    program = environment.program(environment.compile(validation["expression"]))
    assert bool(program.evaluate({"object": celpy.json_to_cel({"spec": spec})})) is allowed

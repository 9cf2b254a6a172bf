"""The CustomResourceDefinition of GalaRun, generated from `gala.spec`. `gala crd` prints it; crds/galarun.yaml is it.

Structural schema, defaults, bounds, CEL rules and transition rules all come from the models, so that an API server and
`gala validate` give the same verdict on the same document; the tests compare them on thousands of documents.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from gala import names, spec_schema, status_schema
from gala.spec import GalaRun
from gala.spec_base import RFC1035_LABEL
from gala.spec_schema import Schema
from gala.status_schema import STATES

_ORDER: Final = ("description", "type", "nullable", "default", "enum", "required", "minimum", "maximum")
_HEADER: Final = "# Generated from common/gala/spec.py by `gala crd`: edit the models, then run `make manifests`.\n"


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a mapping."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": "galarun",
                "shortNames": ["gr"],
                "categories": ["all", "gala"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.learners",
                            "statusReplicasPath": ".status.learners",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": _schema()},
                }
            ],
        },
    }


def render() -> str:
    """The CustomResourceDefinition as the YAML file that is committed."""
    return _HEADER + yaml.safe_dump(definition(), sort_keys=False, width=120, allow_unicode=True)


def _schema() -> Schema:
    run = spec_schema.plain(GalaRun)
    return _ordered(
        {
            "description": run["description"],
            "type": "object",
            "required": ["spec"],
            "properties": {
                "apiVersion": {"type": "string", "description": "Version of this schema."},
                "kind": {"type": "string", "description": "GalaRun."},
                "metadata": {"type": "object"},  # the API server's own; it allows no description here
                "spec": run["properties"]["spec"],
                "status": status_schema.schema(),
            },
            "x-kubernetes-validations": [
                {
                    # The root is the one place from where CEL sees metadata.
                    "rule": f"self.metadata.name.size() <= {names.MAX_RUN_NAME}"
                    f" && self.metadata.name.matches('{RFC1035_LABEL}')",
                    "message": f"metadata.name must have at most {names.MAX_RUN_NAME} characters: lower-case letters,"
                    " digits and inner dashes, beginning with a letter; pods and Services are named after it",
                }
            ],
        }
    )


def _ordered(node: Schema) -> Schema:
    """Says first what a reader wants to know first, and `{}` for a section's default: its fields say the rest."""
    node = dict(sorted(node.items(), key=lambda item: _ORDER.index(item[0]) if item[0] in _ORDER else len(_ORDER)))
    for key, inner in list(node.items()):
        if key == "properties":
            del node[key]
            node[key] = {name: _ordered(field) for name, field in inner.items()}
        elif key in ("items", "additionalProperties"):
            node[key] = _ordered({"description": "One entry.", **inner})
        elif key == "x-kubernetes-validations":
            node[key] = [
                {part: rule[part] for part in ("rule", "message", "fieldPath") if part in rule} for rule in inner
            ]
    if "properties" in node and "default" in node:
        node["default"] = {}
    return node


def _columns() -> list[dict[str, Any]]:
    columns = (
        ("State", "string", ".status.state", 0, f"{', '.join(STATES[:-1])} or {STATES[-1]}."),
        ("Ready", "string", ".status.ready", 0, "Learners in the ring, of those asked for."),
        ("Steps", "integer", ".status.steps", 0, "Agent decisions so far, over all learners."),
        ("Steps/s", "number", ".status.stepsPerSecond", 0, "Agent decisions per second, over all learners."),
        ("Return", "number", ".status.meanReturn", 0, "Mean return of the last episodes."),
        ("Environment", "string", ".spec.environment.id", 0, "What is learned."),
        ("Score", "number", ".status.finalModel.meanReturn", 1, "Mean greedy return of the final model."),
        ("Algorithm", "string", ".spec.algorithm", 1, "The algorithm."),
        ("Topology", "string", ".spec.topology.type", 1, "Who sends parameters to whom."),
        ("Message", "string", ".status.message", 1, "Why the state is what it is."),
        ("Age", "date", ".metadata.creationTimestamp", 0, "Since the run was created."),
    )
    return [
        {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": description}
        for name, kind, path, priority, description in columns
    ]

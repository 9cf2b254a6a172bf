"""The CustomResourceDefinition of GalaRun, generated from `gala.spec`. `gala crd` prints it; crds/galarun.yaml is it.

Structural schema, defaults, bounds, CEL rules and transition rules all come from the models, so that an API server and
`gala validate` give the same verdict on the same document; the tests compare them on thousands of documents.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from gala import spec_schema
from gala.spec import API_GROUP, KIND, MAX_NAME, GalaRun
from gala.spec_base import RFC1035_LABEL
from gala.spec_schema import Schema

PLURAL: Final = "galaruns"
VERSION: Final = "v1alpha1"

_ORDER: Final = ("description", "type", "nullable", "default", "enum", "required", "minimum", "maximum")
_HEADER: Final = "# Generated from common/gala/spec.py by `gala crd`: edit the models, then run `make manifests`.\n"


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a mapping."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "galarun",
                "shortNames": ["gr"],
                "categories": ["all", "gala"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
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
                "status": _status(),
            },
            "x-kubernetes-validations": [
                {
                    # The root is the one place from where CEL sees metadata.
                    "rule": f"self.metadata.name.size() <= {MAX_NAME} && self.metadata.name.matches('{RFC1035_LABEL}')",
                    "message": f"metadata.name must have at most {MAX_NAME} characters: lower-case letters, digits and"
                    " inner dashes, beginning with a letter; pods and Services are named after it",
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
        ("State", "string", ".status.state", 0, "Pending, Running, Degraded, Suspended, Succeeded or Failed."),
        ("Environment", "string", ".spec.environment.id", 0, "What is learned."),
        ("Learners", "integer", ".spec.learners", 0, "Learners asked for."),
        ("Ready", "integer", ".status.readyLearners", 0, "Learners in the ring."),
        ("Steps", "integer", ".status.steps", 0, "Agent decisions so far, over all learners."),
        ("Return", "number", ".status.meanReturn", 0, "Mean return of the last episodes."),
        ("Steps/s", "number", ".status.stepsPerSecond", 1, "Agent decisions per second, over all learners."),
        ("Algorithm", "string", ".spec.algorithm", 1, "The algorithm."),
        ("Topology", "string", ".spec.topology.type", 1, "Who sends parameters to whom."),
        ("Age", "date", ".metadata.creationTimestamp", 0, "Since the run was created."),
    )
    return [
        {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": description}
        for name, kind, path, priority, description in columns
    ]


def _status() -> Schema:
    def field(kind: str, description: str, **more: Any) -> Schema:
        return {"description": description, "type": kind, **more}

    condition = {
        "type": field("string", "Aspect of the run, such as Accepted or RingFormed.", minLength=1, maxLength=316),
        "status": field("string", "Whether it is so.", enum=["True", "False", "Unknown"]),
        "observedGeneration": field(
            "integer", "The spec's generation that this was seen with.", format="int64", minimum=0
        ),
        "lastTransitionTime": field("string", "When the status changed last.", format="date-time"),
        "reason": field(
            "string",
            "Why, as one word for programs.",
            pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            maxLength=1024,
        ),
        "message": field("string", "Why, as a sentence for people.", maxLength=32768),
    }
    return field(
        "object",
        "What the operator has observed. Nobody else writes it.",
        properties={
            "state": field("string", "The run in one word, derived from the conditions.", maxLength=64),
            "observedGeneration": field("integer", "The spec's generation that this status is about.", format="int64"),
            "conditions": field(
                "array",
                "In detail: Accepted, PodsReady, RingFormed, Progressing, Degraded, Suspended, Succeeded, Failed.",
                maxItems=32,
                items={
                    "description": "One aspect of the run.",
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": condition,
                },
                **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
            ),
            "learners": field("integer", "Learners that there are.", format="int32", minimum=0),
            "readyLearners": field("integer", "Learners that are in the ring.", format="int32", minimum=0),
            "selector": field("string", "Label selector of the run's pods, for the scale subresource.", maxLength=1024),
            "steps": field("integer", "Agent decisions so far, over all learners.", format="int64", minimum=0),
            "stepsPerSecond": field("number", "Agent decisions per second, over all learners."),
            "meanReturn": field("number", "Mean return of the last episodes, over all learners."),
            "disagreement": field(
                "number", "Relative distance of a learner's parameters from its neighbour's, the largest."
            ),
            "startTime": field("string", "When the run became active.", format="date-time"),
            "completionTime": field("string", "When the run ended.", format="date-time"),
        },
    )

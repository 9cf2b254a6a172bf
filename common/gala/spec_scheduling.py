"""Where a GalaRun's author may have the pods run: part of `gala.spec_worker`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from gala.spec_base import LABEL_KEY, LABEL_VALUE, FreeObject, Integer, Labels, Rule, Section

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=LABEL_KEY)]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE)]
Policy = Literal["Honor", "Ignore"]


class Toleration(Section):
    """A node taint that the learners' pods tolerate."""

    key: Annotated[str, StringConstraints(max_length=316)] | None = Field(
        default=None, description="Key of the taint; unset, with operator Exists, tolerates every taint."
    )
    operator: Literal["Equal", "Exists"] = Field(
        default="Equal", description="Equal compares the value, Exists ignores it."
    )
    value: Annotated[str, StringConstraints(max_length=63)] | None = Field(
        default=None, description="Value of the taint."
    )
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; unset tolerates every effect."
    )
    toleration_seconds: Annotated[Integer, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="Seconds that a pod stays on a node that got a NoExecute taint; unset = for ever."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="value",
            holds=lambda toleration: toleration.operator == "Equal" or not toleration.value,
            cel="self.operator == 'Equal' || !has(self.value) || self.value == ''",
            message="must be unset when operator is Exists",
            remedy="remove the value, or use operator Equal",
        ),
        Rule(
            path="key",
            holds=lambda toleration: toleration.operator == "Exists" or bool(toleration.key),
            cel="self.operator == 'Exists' || (has(self.key) && self.key != '')",
            message="must be set when operator is Equal",
            remedy="name the taint's key, or use operator Exists",
        ),
        Rule(
            path="tolerationSeconds",
            holds=lambda toleration: toleration.toleration_seconds is None or toleration.effect == "NoExecute",
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="must be unset unless effect is NoExecute",
            remedy="remove it, or set effect: NoExecute",
        ),
    )


class Affinity(Section):
    """Affinity of the pods. What is inside of its three parts is for the API server to judge."""

    node_affinity: FreeObject | None = Field(default=None, description="To nodes, as in a Pod's spec.")
    pod_affinity: FreeObject | None = Field(default=None, description="To pods, as in a Pod's spec; learners only.")
    pod_anti_affinity: FreeObject | None = Field(
        default=None, description="Away from pods, as in a Pod's spec; learners only."
    )


class SelectorExpression(Section):
    """A condition on one label."""

    key: LabelKey = Field(description="The label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="What is asked of it.")
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] = Field(
        default=(), description="The values, for In and NotIn."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            path="values",
            holds=lambda expression: (expression.operator in ("In", "NotIn")) == bool(expression.values),
            cel="(self.operator in ['In', 'NotIn']) == (self.values.size() > 0)",
            message="must be given for In and NotIn, and only for them",
            remedy="give at least one value, or use Exists or DoesNotExist without values",
        ),
    )


class LabelSelector(Section):
    """Which pods are meant."""

    match_labels: Labels = Field(default={}, description="Labels that they have.")
    match_expressions: Annotated[tuple[SelectorExpression, ...], Field(max_length=16)] = Field(
        default=(), description="Conditions on their labels."
    )


class SpreadConstraint(Section):
    """How evenly learners are spread over nodes or zones."""

    max_skew: Annotated[Integer, Field(ge=1, le=2**31 - 1)] = Field(
        default=1, description="By how many pods two places may differ."
    )
    topology_key: LabelKey = Field(description="Label of nodes that names a place, such as kubernetes.io/hostname.")
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        default="ScheduleAnyway", description="What happens to a pod that would make it uneven."
    )
    label_selector: LabelSelector | None = Field(
        default=None, description="Which pods are counted; unset = the run's learners."
    )
    node_affinity_policy: Policy | None = Field(
        default=None, description="Whether only nodes are counted that affinity and nodeSelector allow; unset = Honor."
    )
    node_taints_policy: Policy | None = Field(
        default=None, description="Whether only nodes are counted whose taints are tolerated; unset = Ignore."
    )

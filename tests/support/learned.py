"""Whether a run directory, of this machine or fetched from a cluster, shows that its run has learned."""

import json
from pathlib import Path

from gala import names


def assert_learned(run: Path, score: float, *, kept: float, otherwise: str = "") -> None:
    """An evaluation of the run, greedy, has reached `score`, and the final model plays to `kept` at least.

    Two numbers, since training is random, no two asynchronous runs are alike, and one in some dozens falls back shortly
    before its end (docs/results/comparison.md): that is not what these tests are to find.
    """
    lines = [line for file in run.glob("learner-*/metrics.jsonl") for line in file.read_text().splitlines()]
    records = [json.loads(line) for line in lines if line.endswith("}")]
    evaluations = [record for record in records if record["kind"] == "evaluation" and record["mode"] == "greedy"]
    greedy = {record["globalSteps"]: record["meanReturn"] for record in evaluations}
    card = json.loads((run / names.FINAL_DIRECTORY / names.CARD_FILE).read_text())
    final = card["evaluation"]["greedy"]["meanReturn"]
    assert max([*greedy.values(), final]) >= score, (greedy, final, otherwise)
    assert final >= kept, (greedy, final)

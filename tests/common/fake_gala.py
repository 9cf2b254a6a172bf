"""`gala` with fake workers, a fake final evaluation and little patience: the real command line and launcher."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from gala import cli, local
from gala.experiment import machine
from gala.local import ending

FINALIZE = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
if (run.parent.parent / "fake-finalize").exists():
    sys.exit("no simulators left")
while (run.parent.parent / "fake-wait").exists():
    time.sleep(0.02)
(run / "final").mkdir(exist_ok=True)
if (run.parent.parent / "fake-flaws").exists():
    score = {"episodes": 10, "meanReturn": None, "stdReturn": None, "humanNormalised": None}
else:
    score = {"episodes": 10, "meanReturn": 19.5, "stdReturn": 0.5, "humanNormalised": 1.14}
(run / "final" / "card.json").write_text(json.dumps({"globalSteps": 1234567, "evaluation": {"greedy": score}}))
"""

local.start = functools.partial(
    local.start,
    commands=local.Commands(
        worker=(sys.executable, str(Path(__file__).with_name("fake_worker.py"))),
        finalize=(sys.executable, "-c", FINALIZE),
    ),
    patience=local.Patience(backoff_base=0.05, backoff_max=0.2, stop=5.0, leave=5.0, stragglers=0.5),
    rhythm=local.Rhythm(tick=0.02, poll=0.1, record=0.2, line=0.1),
)
machine.GALA = (sys.executable, __file__)
ending.write_report = lambda directory: (None, "not in this test")
cli.main()

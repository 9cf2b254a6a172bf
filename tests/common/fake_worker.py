"""Stands in for `python -m gala_worker` in the launcher's tests: serves /status, watches the plan, obeys signals.

It does what `fake-<run>`, `fake-<rank>` or else `fake-all` says, beside the folder of all runs, one word a line, read
again all the time:

    finish          reach the total steps and exit 0          crash           exit 1
    mistake TEXT    write TEXT to stderr and exit 2           deaf            ignore SIGTERM from now on
    mute            do not say that it trains
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

rank = int(os.environ["GALA_RANK"])
plan_file = Path(os.environ["GALA_PLAN_FILE"])
run_directory = Path(os.environ["GALA_OUTPUT_DIR"])
plan: dict[str, Any] = json.loads(plan_file.read_text())
steps = 0
stop = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = {"run": plan["runName"], "rank": rank, "epoch": plan["epoch"], "steps": steps}
        status["state"] = "starting" if "mute" in script() else "training"
        status |= {"globalSteps": steps * len(plan["learners"]), "stepsPerSecond": 100.0, "meanReturn": -20.5}
        status |= {"stalenessUpdates": 2, "relativeDisagreement": 0.01, "totalSteps": plan["spec"]["totalSteps"]}
        body = json.dumps(status).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class ReusingServer(HTTPServer):
    allow_reuse_port = True


def note(word: str) -> None:
    """One line to what the tests read: the word, our pid, and what the launcher told us."""
    told = {key: value for key, value in os.environ.items() if key.startswith(("GALA_", "OMP_"))}
    folder = run_directory / f"learner-{rank}"
    with (folder / "notes.jsonl").open("a") as file:
        file.write(json.dumps({"word": word, "pid": os.getpid(), "epoch": plan["epoch"], "told": told}) + "\n")


def terminate(number: int, frame: FrameType | None) -> None:
    stop.set()


def script() -> list[str]:
    for name in (f"fake-{plan['runName']}", f"fake-{rank}", "fake-all"):
        try:
            return (run_directory.parent.parent / name).read_text().split("\n")
        except FileNotFoundError:
            continue
    return []


def leave(word: str, code: int) -> None:
    note(word)
    sys.stdout.flush()
    os._exit(code)


signal.signal(signal.SIGTERM, terminate)
host, port = next(entry for entry in plan["learners"] if entry["rank"] == rank)["address"]["http"].split(":")
server = ReusingServer((host, int(port)), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stderr.write(f"fake worker {rank} started\n")
note("started")  # last: who waits for it may look at the log at once
while True:
    steps += 1
    for line in script():
        word, _, rest = line.partition(" ")
        if word == "finish":
            leave("finished", 0)
        elif word == "crash":
            leave("crashed", 1)
        elif word == "mistake":
            sys.stderr.write(f"{rest}\n")
            leave("mistaken", 2)
        elif word == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    epoch = plan["epoch"]
    plan = json.loads(plan_file.read_text())
    if plan["epoch"] != epoch:
        note("replanned")
    if rank not in [entry["rank"] for entry in plan["learners"]]:
        leave("left", 0)
    if stop.wait(0.02):
        checkpoint = run_directory / f"learner-{rank}" / "checkpoints" / "step-000000000001"
        checkpoint.mkdir(parents=True, exist_ok=True)
        leave("stopped", 143)

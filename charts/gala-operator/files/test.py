"""`helm test`: the operator is ready and counts its work, and the API server takes a GalaRun and refuses a bad one.

Run by the operator's image with nothing but the standard library. GalaRuns are only sent as dry runs: none is made.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE_SECONDS = 60


def operator(path: str) -> str:
    """A new pod of the operator takes some seconds to stand behind its Service on every node."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{os.environ['OPERATOR_URL']}{path}", timeout=10) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(1)


def dry_run(learners: int) -> tuple[int, str]:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    run = {
        "apiVersion": "gala.dev/v1alpha1",
        "kind": "GalaRun",
        "metadata": {"generateName": "helm-test-"},
        "spec": {"environment": {"id": "CartPole-v1"}, "learners": learners, "worker": {"gpus": 0}},
    }
    request = urllib.request.Request(
        f"https://{host}:{port}/apis/gala.dev/v1alpha1/namespaces/{os.environ['NAMESPACE']}/galaruns?dryRun=All",
        data=json.dumps(run).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def main() -> int:
    operator("/readyz")
    taken, refused = dry_run(learners=3), dry_run(learners=0)
    problems = []
    if "galarun_operator_reconcile_total" not in operator("/metrics"):
        problems.append("/metrics does not count reconciles")
    if taken[0] != 201:
        problems.append(f"a good GalaRun was answered with {taken[0]}: {taken[1]}")
    if refused[0] != 422:
        problems.append(f"a GalaRun with 0 learners was answered with {refused[0]}: {refused[1]}")
    sys.stdout.write("\n".join(problems or ["The operator is ready and the API server knows GalaRuns."]) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""What the documents tell people to type, typed: every `bash` block of docs/operator.md and README.md, in order.

Where the node is the tests' own, the handbook begins with nothing in it, not even the resource definition. Only three
things are not as there. The images are those of this checkout: a `helm` before the real one adds the values
that node/deploy.sh gives. The handbook's runs are made in the test's own namespace. And README's cluster is one beside
the tests'.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from live_cluster import api_port

PROJECT = Path(__file__).parents[2]
HELM = """#!/bin/sh
case "$1" in
install|upgrade) exec {helm} "$@" {values} ;;
*) exec {helm} "$@" ;;
esac
"""


def blocks(document: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", (PROJECT / document).read_text(), re.MULTILINE | re.DOTALL)


def type_in(block: str, environment: dict[str, str], folder: Path) -> str:
    """As at a prompt, but that it ends at the first command that fails."""
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=720)
    assert done.returncode == 0, f"{block}\nended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def shell(cluster, namespace, tmp_path, request):
    """(environment, folder) of one who follows the handbook from the root of a checkout."""
    if cluster.node:
        request.getfixturevalue("bare")
        take = ""
    else:
        take = " --take-ownership --force-conflicts"  # of the resource definition that is there for the other tests
    tools = tmp_path / "bin"
    tools.mkdir()
    helm = shutil.which("helm", path=cluster.environment["PATH"])
    (operator, tag), (worker, worker_tag) = (
        image.rsplit(":", 1) for image in (cluster.operator_image, cluster.worker_image)
    )
    values = f"--set image.repository={operator},image.tag={tag}"
    values += f" --set worker.image.repository={worker},worker.image.tag={worker_tag}{take}"
    (tools / "helm").write_text(HELM.format(helm=helm, values=values))
    (tools / "helm").chmod(0o755)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig.read_text())
    kubeconfig.chmod(0o600)
    environment = cluster.environment | {
        "KUBECONFIG": str(kubeconfig),
        "PATH": f"{tools}:{Path(sys.executable).parent}:{cluster.environment['PATH']}",
    }
    type_in(f"kubectl config set-context --current --namespace={namespace.name}", environment, tmp_path)
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("charts", "examples"):
        (folder / name).symlink_to(PROJECT / name)
    yield environment, folder
    cluster.run(helm, "uninstall", "gala", "-n", "gala-system", "--ignore-not-found", "--wait", check=False)
    cluster.kubectl("delete", "namespace", "gala-system", "--ignore-not-found", "--wait=false")


@pytest.mark.timeout(1500, func_only=True)
def test_the_handbook_can_be_followed_from_the_installation_to_the_end(shell, namespace):
    environment, folder = shell
    said = {block: type_in(block, environment, folder) for block in blocks("docs/operator.md")}

    assert any("Phase:          Succeeded" in answer for block, answer in said.items() if "helm test" in block)
    (answer,) = (answer for block, answer in said.items() if "finalModel" in block)
    model = json.loads(answer[answer.index("{") :])
    assert model["meanReturn"] >= 475
    assert model["averaged"] == [0, 1, 2]
    assert model["globalSteps"] >= 200_000
    assert (folder / "runs/cartpole/final/model.safetensors").exists()
    namespace.wait_gone("cartpole")


@pytest.mark.timeout(1500, func_only=True)
def test_the_readme_leads_from_nothing_to_a_ring_in_a_cluster_and_back(cluster, tmp_path):
    if not cluster.node:
        pytest.skip("makes a cluster of its own")
    (block,) = (block for block in blocks("README.md") if "cluster-up" in block)
    state = tmp_path / "state"
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    environment |= {"GALA_STATE": str(state), "GALA_API_PORT": str(api_port(0)), "VENV": sys.prefix}
    try:
        said = type_in(block, environment, PROJECT)
    finally:
        subprocess.run(["make", "cluster-down"], env=environment, cwd=PROJECT, check=True, capture_output=True)
    assert "cartpole" in said
    assert not state.exists()

"""The chart on a real cluster with the real helm: upgrade, uninstallation, confined to a namespace.

From nothing to a trained agent it is `test_documentation.py` that installs it.
"""

import shutil
from pathlib import Path

import pytest
import yaml

from live_cluster import CRD

PROJECT = Path(__file__).parents[2]
CHART = PROJECT / "charts/gala-operator"


@pytest.fixture
def release(cluster, namespace):
    """Runs helm on the release `gala` in the test's namespace: `release("upgrade", chart, "name=value", ...)`."""
    values = ["image.pullPolicy=IfNotPresent"]
    for prefix, image in (("", cluster.operator_image), ("worker.", cluster.worker_image)):
        repository, tag = image.rsplit(":", 1)
        values += [f"{prefix}image.repository={repository}", f"{prefix}image.tag={tag}"]

    def helm(action: str, chart: Path, *more: str) -> None:
        sets = [part for value in (*values, *more) for part in ("--set", value)]
        cluster.helm(
            action, "gala", str(chart), "-n", namespace.name, "--wait", "--timeout", "180s", *sets, seconds=200
        )

    yield helm
    cluster.helm("uninstall", "gala", "-n", namespace.name, "--ignore-not-found", "--wait", check=False)


@pytest.fixture
def previous(cluster, tmp_path):
    """The chart as one version earlier would have been, packaged."""
    folder = tmp_path / "gala-operator"
    shutil.copytree(CHART, folder)
    described = yaml.safe_load((folder / "Chart.yaml").read_text()) | {"version": "0.0.9", "appVersion": "0.0.9"}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(described))
    definition = folder / "files/crds/galarun.yaml"
    old = definition.read_text().replace("name: Steps/s", "name: Speed")
    assert old != definition.read_text()
    definition.write_text(old)
    cluster.helm("package", str(folder), "-d", str(tmp_path))
    return tmp_path / "gala-operator-0.0.9.tgz"


def columns(cluster) -> set[str]:
    definition = cluster.read(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}")
    return {column["name"] for column in definition["spec"]["versions"][0]["additionalPrinterColumns"]}


def operator_pod(namespace) -> dict:
    (pod,) = namespace.items("pods", "app.kubernetes.io/name=gala-operator,app.kubernetes.io/component=operator")
    return pod


@pytest.mark.usefixtures("bare")
@pytest.mark.timeout(600, func_only=True)
def test_a_run_trains_through_upgrade_uninstallation_and_installation_anew(
    cluster, namespace, slow_pole, release, previous, until
):
    def progresses() -> None:
        seen = namespace.status("pole").get("steps", 0)
        namespace.wait("galaruns", "pole", lambda run: run["status"]["steps"] > seen, what="its steps rise")

    quick = ("controller.pollSeconds=1", "controller.statusSeconds=1")
    # A name of their own for the images of the previous version.
    image, worker = (name.rsplit(":", 1)[0] + ":previous" for name in (cluster.operator_image, cluster.worker_image))
    for present, earlier in ((cluster.operator_image, image), (cluster.worker_image, worker)):
        cluster.enter("ctr", "images", "tag", "--force", present, earlier)
    release("install", previous, "image.tag=previous", "worker.image.tag=previous", "controller.workers=2", *quick)
    assert "Speed" in columns(cluster)
    cluster.helm("test", "gala", "-n", namespace.name, "--timeout", "120s", seconds=150)

    namespace.apply(slow_pole("pole"))
    namespace.wait_state("pole", "Running")
    before, old = namespace.lives("pole"), operator_pod(namespace)
    assert {pod["spec"]["containers"][0]["image"] for pod in namespace.pods("pole").values()} == {worker}

    release("upgrade", CHART, *quick)
    new = operator_pod(namespace)
    assert new["spec"]["containers"][0]["image"] == cluster.operator_image
    assert new["metadata"]["labels"]["helm.sh/chart"] != old["metadata"]["labels"]["helm.sh/chart"]
    assert "Steps/s" in columns(cluster), "the chart upgrades the resource definition"
    progresses()
    assert namespace.lives("pole") == before
    assert namespace.status("pole")["state"] == "Running"
    cluster.helm("test", "gala", "-n", namespace.name, "--timeout", "120s", seconds=150)

    # A learner that is replaced now is the new version's, and trains with the one that is not.
    namespace.delete("pod", "pole-1", "--grace-period=1")
    pod = namespace.wait_replaced("pole-1", before["pole-1"][0])
    assert pod["spec"]["containers"][0]["image"] == cluster.worker_image
    namespace.wait_state("pole", "Running")
    assert namespace.lives("pole")["pole-0"] == before["pole-0"]
    before = namespace.lives("pole")

    cluster.helm("uninstall", "gala", "-n", namespace.name, "--wait")
    until("the operator is gone", lambda: not namespace.items("pods", "app.kubernetes.io/name=gala-operator"))
    steps = until("it answers", lambda: namespace.worker_status("pole-0").get("steps"))
    until("it trains without an operator", lambda: namespace.worker_status("pole-0").get("steps", 0) > steps)
    assert columns(cluster), "the resource definition stays"
    assert namespace.lives("pole") == before

    release("install", CHART, *quick)
    progresses()
    assert namespace.lives("pole") == before
    namespace.delete("galarun", "pole")
    namespace.wait_gone("pole")


def test_confined_to_a_namespace_it_sees_no_other(cluster, namespace, slow_pole, deployed):
    elsewhere = f"{namespace.name}-b"
    cluster.kubectl("create", "namespace", elsewhere)
    try:
        deployed()
        run = slow_pole("pole", learners=1)
        cluster.kubectl("-n", elsewhere, "apply", "-f", "-", stdin=yaml.safe_dump(run))
        namespace.apply(run)
        namespace.wait("galaruns", "pole", lambda found: found.get("status", {}).get("state"))
        namespace.wait("pods", "pole-0", lambda pod: pod["status"].get("phase"))
        other = cluster.read(f"/apis/gala.dev/v1alpha1/namespaces/{elsewhere}/galaruns/pole")
        assert "status" not in other
        account = f"system:serviceaccount:{namespace.name}:gala-operator"
        for place, answer in ((namespace.name, "yes"), (elsewhere, "no")):
            asked = cluster.kubectl("auth", "can-i", "create", "pods", "-n", place, "--as", account, check=False)
            assert asked.strip() == answer
    finally:
        cluster.kubectl("delete", "namespace", elsewhere, "--wait=false")

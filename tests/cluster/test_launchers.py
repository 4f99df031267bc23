"""The files of a cluster that the guide ships: what Slurm would start, and KubeRay's own fields."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from harness.cluster.node import GPUS
from harness.cluster.offer import label, resource
from harness.commands.offer import NODE

# ray.io/v1 RayCluster, as KubeRay's ray.io_rayclusters.yaml has it: fields that must be there, and those that may.
SPEC = ({"headGroupSpec"}, {"rayVersion", "authOptions", "workerGroupSpecs", "enableInTreeAutoscaling", "suspend"})
HEAD = ({"template"}, {"rayStartParams", "serviceType", "enableIngress", "headService", "resources", "labels"})
WORKERS = (
    {"groupName", "minReplicas", "maxReplicas", "template"},
    {
        "replicas",
        "rayStartParams",
        "numOfHosts",
        "idleTimeoutSeconds",
        "scaleStrategy",
        "suspend",
        "resources",
        "labels",
    },
)


@pytest.fixture
def guides(repository: Path) -> Path:
    return repository / "docs" / "guides"


@pytest.mark.programs
@pytest.mark.parametrize("nodes", [1, 4])
def test_a_slurm_job_starts_a_head_its_workers_and_the_suites(guides: Path, tmp_path: Path, nodes: int) -> None:
    told = tmp_path / "told"
    head = f"127.{os.getpid() % 250 + 1}.{os.getpid() // 250 % 250}.{nodes}"
    programs = {
        "srun": f'echo "$RAY_AUTH_MODE ${{#RAY_AUTH_TOKEN}} $*" >> {told}',
        "scontrol": f"printf '{head}\\nsecond\\n'",
        "python": 'echo "a-token"',
    }
    for name, words in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-4]"}
    command = ["bash", str(guides / "fleet-slurm.sh"), "--recipe", "bf16"]
    with socket.create_server((head, 6379)):
        subprocess.run(command, env=environ | {"SLURM_JOB_NUM_NODES": str(nodes)}, check=True, timeout=60)
    # The script does not wait for what it starts in the background: its step may be told after it has ended.
    steps = 2 + (nodes > 1)
    end = time.monotonic() + 60
    while len(lines := sorted(told.read_text().splitlines())) < steps and time.monotonic() < end:
        time.sleep(0.01)
    assert len(lines) == steps
    assert all(line.startswith("token 7 ") for line in lines)
    started = [line.partition("python -m ")[2] for line in lines]
    assert "harness offer --head --block" in started
    assert f"pytest suites -m h100 --on {head}:6379 --recipe bf16" in started
    joined = [line for line in lines if f"offer --join {head}:6379 --block" in line]
    assert len(joined) == (nodes > 1)
    # Of as many tasks as nodes: the job's own number would be taken else, and one of them join twice.
    assert all(f"--nodes={nodes - 1} --ntasks={nodes - 1} --exclude={head} " in line for line in joined)


@pytest.mark.programs
def test_a_slurm_job_whose_head_does_not_begin_ends(guides: Path, tmp_path: Path) -> None:
    for name, words in {"srun": "exit 3", "scontrol": "echo 127.0.0.1", "python": "echo a-token"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    script = (guides / "fleet-slurm.sh").read_text(encoding="utf-8").replace("/6379", "/1")
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1"}
    assert subprocess.run(["bash", "-c", script], env=environ, capture_output=True, timeout=60).returncode != 0


def pod(spec: dict[str, Any]) -> None:
    """Hold a pod against Kubernetes' own schema, where that is installed."""
    if importlib.util.find_spec("kubernetes_validate"):
        import kubernetes_validate

        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "it"}, "spec": spec}
        kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)


def fields(found: dict[str, Any], known: tuple[set[str], set[str]]) -> None:
    must, may = known
    assert must <= found.keys() <= must | may


def accepted(group: dict[str, Any]) -> None:
    """Hold a group against what KubeRay's operator refuses beyond its schema (1.7, validation.go)."""
    parameters, resources, labels = (group.get(it, {}) for it in ("rayStartParams", "resources", "labels"))
    assert all(isinstance(value, str) for it in (parameters, resources, labels) for value in it.values())
    assert "labels" not in parameters
    assert not resources or not parameters.keys() & {"num-cpus", "num-gpus", "memory", "resources"}
    assert all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", it) for it in [*labels, *labels.values()])


def test_the_kubernetes_file_has_the_fields_of_a_raycluster(guides: Path) -> None:
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((guides / "fleet-kubernetes.yaml").read_text(encoding="utf-8"))
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayCluster")
    fields(found["spec"], SPEC)
    assert found["spec"]["authOptions"] == {"mode": "token"}
    head = found["spec"]["headGroupSpec"]
    fields(head, HEAD)
    (workers,) = found["spec"]["workerGroupSpecs"]
    fields(workers, WORKERS)
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (head, workers):
        accepted(group)
        assert group["template"]["spec"]["containers"]
    for group in (head, workers):
        pod(group["template"]["spec"])
    (container,) = workers["template"]["spec"]["containers"]
    gpus = str(container["resources"]["limits"]["nvidia.com/gpu"])
    # As `offer` gives it to a node.
    assert {it["name"]: it["value"] for it in container["env"]} == {GPUS: gpus, **NODE}
    assert workers["resources"] == {"nvidia.com/gpu": gpus, resource("h100"): gpus}
    assert list(workers["labels"]) == [label("h100")]


@pytest.mark.parametrize(
    "group",
    [
        {"rayStartParams": {"labels": "harness-kind-h100=k1"}},
        {"rayStartParams": {"num-gpus": "8"}, "resources": {"harness-h100": "8"}},
        {"rayStartParams": {}, "labels": {"harness-kind-h100": "no label's value"}},
        {"rayStartParams": {"num-gpus": 8}},
    ],
)
def test_what_kuberay_refuses_is_refused_here(group: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        accepted(group)

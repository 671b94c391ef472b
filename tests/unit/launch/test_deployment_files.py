"""The files for Kubernetes, `ray up` and Slurm hold to the schemas of what reads them."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_teracon.cli import _parser

EXAMPLES = Path(__file__).parents[3] / "launch" / "examples"

# The fields of KubeRay's RayJob (ray.io/v1) that may be set, by the names of its API reference; `True` for what is Kubernetes' own.
POD = {
    "metadata": True,
    "spec": {"serviceAccountName": str, "containers": list, "volumes": list, "nodeSelector": dict, "tolerations": list},
}
START: type = dict
HEAD = {"serviceType": str, "enableIngress": bool, "rayStartParams": START, "template": POD}
GROUP = {
    "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "numOfHosts": int, "idleTimeoutSeconds": int,
    "rayStartParams": START, "template": POD,
}  # fmt: skip
CLUSTER = {
    "rayVersion": str, "enableInTreeAutoscaling": bool, "autoscalerOptions": dict, "authOptions": {"mode": str}, "headGroupSpec": HEAD,
    "workerGroupSpecs": [GROUP], "suspend": bool,
}  # fmt: skip
JOB = {
    "entrypoint": str, "submissionMode": str, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "backoffLimit": int,
    "activeDeadlineSeconds": int, "runtimeEnvYAML": str, "rayClusterSpec": CLUSTER, "suspend": bool,
}  # fmt: skip
REQUIRED = {"rayClusterSpec": ("headGroupSpec",), "workerGroupSpecs": ("groupName", "minReplicas", "maxReplicas", "template")}


def problems(value: Any, schema: Any, path: str) -> list[str]:
    """Return where a value leaves a schema: unknown fields, fields of another type, required ones that are missing."""
    if schema is True:
        return []
    if isinstance(schema, type):
        right = isinstance(value, schema) and not (schema is int and isinstance(value, bool))
        return [] if right else [f"{path}: {value!r} is no {schema.__name__}"]
    if isinstance(schema, list):
        return [line for number, entry in enumerate(value) for line in problems(entry, schema[0], f"{path}[{number}]")]
    found = [f"{path}.{name}: unknown" for name in value if name not in schema]
    found += [f"{path}.{name}: missing" for name in REQUIRED.get(path.rpartition(".")[2].split("[")[0], ()) if name not in value]
    return found + [line for name in value if name in schema for line in problems(value[name], schema[name], f"{path}.{name}")]


@pytest.fixture
def rayjob() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    return loaded


def test_the_rayjob_has_fields_of_its_kind_alone(rayjob: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert set(rayjob) == {"apiVersion", "kind", "metadata", "spec"}
    assert problems(rayjob["spec"], JOB, "spec") == []
    assert rayjob["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"]["mode"] in ("token", "disabled")


def test_the_check_of_the_rayjob_finds_what_is_wrong(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]
    spec["backofLimit"] = spec.pop("backoffLimit")
    spec["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "8"
    del spec["rayClusterSpec"]["headGroupSpec"]
    assert sorted(problems(spec, JOB, "spec")) == [
        "spec.backofLimit: unknown",
        "spec.rayClusterSpec.headGroupSpec: missing",
        "spec.rayClusterSpec.workerGroupSpecs[0].replicas: '8' is no int",
    ]


def test_the_rayjobs_pods_are_whole_and_its_start_parameters_are_texts(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # Kubernetes refuses numbers there
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["name"]
            assert container["image"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]
    workers = cluster["workerGroupSpecs"][0]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


def test_the_rayjobs_command_is_one_of_this_program(rayjob: dict[str, Any]) -> None:
    words = shlex.split(rayjob["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "dist_teracon"]
    options = _parser().parse_args(words[3:])
    assert options.launcher == "ray"
    groups = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert f"launch.workers={groups[0]['maxReplicas']}" in options.set
    assert f"launch.min_workers={groups[0]['minReplicas']}" in options.set


def test_rays_own_check_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((EXAMPLES / "ray-up.yaml").read_text())
    validate_config(prepare_config(config))
    config["available_node_types"]["gpu"]["min_wrokers"] = 1
    with pytest.raises(Exception, match="min_wrokers"):
        validate_config(prepare_config(config))


def test_the_slurm_script_is_bash_and_starts_this_programs_module() -> None:
    script = EXAMPLES / "slurm-torchrun.sh"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False).stderr == ""
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n")
    head = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(line.removeprefix("#SBATCH ").startswith("--") for line in head)
    assert "-m dist_teracon.launch.torchrun -- " in text


def test_the_slurm_script_passes_torchrun_what_slurm_sets(tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands, that print what they are called with."""
    for name, body in (("scontrol", "echo node-1; echo node-2"), ("srun", 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_ON_NODE": "8",
        "SLURM_NNODES": "2", "SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": "/home/user", "CONFIG": "c.yaml",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(EXAMPLES / "slurm-torchrun.sh"), "--set", "seed=1"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        "torchrun", "--nnodes", "2", "--nproc-per-node", "8", "--rdzv-id", "77", "--rdzv-backend", "c10d", "--rdzv-endpoint",
        "node-1:29500", "-m", "dist_teracon.launch.torchrun", "--", "c.yaml", "--run", "/home/user/runs/ttl", "--set", "seed=1",
    ]  # fmt: skip

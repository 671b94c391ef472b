"""`dist-teracon doctor`: what a machine or a cluster has, what would run, what is missing and how to mend it."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dist_teracon.launch import machine

Status = Literal["ok", "note", "missing"]

_GB = 1 << 30
# The oldest versions that this program runs with.
_PYTHON = (3, 11)
_OLDEST = {
    "torch": (2, 11),
    "deepspeed": (0, 19, 8),
    "ray": (2, 60),
    "numpy": (2,),
    "pyarrow": (26,),
    "fsspec": (2026, 9),
    "safetensors": (0, 5),
    "pydantic": (2, 10),
}
# Library: what goes without it, and the extra that brings it.
_OPTIONAL = {
    "s3fs": ("data sets and runs at s3://", "s3"),
    "gcsfs": ("data sets and runs at gs://", "gcs"),
    "matplotlib": ("the figures of report.html", "report"),
    "jinja2": ("report.html", "report"),
    "scikit-learn": ("the baseline of profile tasks", "baselines"),
    "aiohttp-cors": ("a Ray cluster that takes jobs (launch.submit)", "cluster"),
}
_ENOUGH_DISK, _ENOUGH_SHARED, _ENOUGH_FILES = 5 * _GB, _GB, 4096


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: `missing` where something cannot run without it.
        found: What there is.
        mend: What to do about it, where there is something.
    """

    name: str
    status: Status
    found: str
    mend: str = ""


def doctor(*, ray_address: str | None = None, as_json: bool = False) -> int:
    """Print what this machine has, and with an address each node of that Ray cluster.

    Returns:
        The exit status: 1 where something needed is missing.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # libraries print while they are imported
        here = machine.survey()
    reports = {"this machine": check(here)}
    if ray_address is not None:
        reports |= _nodes(ray_address, here)
    if as_json:
        print(json.dumps({name: [asdict(finding) for finding in findings] for name, findings in reports.items()}, indent=1))
    else:
        for name, findings in reports.items():
            print("\n".join([f"{name}:", *(line for finding in findings for line in _lines(finding))]))
    missing = [finding for findings in reports.values() for finding in findings if finding.status == "missing"]
    if not as_json:
        print("nothing that is needed is missing" if not missing else f"{len(missing)} needed thing(s) missing")
    return int(bool(missing))


def _lines(finding: Finding) -> list[str]:
    mark = {"ok": "  ", "note": "· ", "missing": "✗ "}[finding.status]
    return [f"{mark}{finding.name:16}{finding.found}", *([f"{'':18}-> {finding.mend}"] if finding.mend else [])]


def check(facts: dict[str, Any]) -> list[Finding]:
    """Return what to say of a machine.

    Args:
        facts: As `machine.survey` returns it.
    """
    return [*_programs(facts), *_computing(facts), *_machine(facts), *_extras(facts), *_parts(facts)]


def _programs(facts: dict[str, Any]) -> Iterator[Finding]:
    libraries = facts["libraries"]
    old = _numbers(facts["python"]) < _PYTHON
    yield Finding("python", "missing" if old else "ok", facts["python"], "Python 3.11 or newer" if old else "")
    if "dist-teracon" not in libraries:
        yield Finding("dist_teracon", "missing", "not there", "install it, or let launch.submit bring it with each job")
    else:
        yield Finding("dist_teracon", "ok", libraries["dist-teracon"])
    for name, oldest in _OLDEST.items():
        version, wanted = libraries.get(name, ""), ".".join(map(str, oldest))
        error = facts.get(name, {}).get("error", "") if name in ("torch", "deepspeed") else ""
        if not version or _numbers(version) < oldest:
            yield Finding(name, "missing", version or "not there", f"pip install '{name}>={wanted}'")
        elif error:
            yield Finding(name, "missing", f"{version}: cannot be imported ({error})", f"pip install --force-reinstall '{name}>={wanted}'")
        else:
            yield Finding(name, "ok", version)


def _computing(facts: dict[str, Any]) -> Iterator[Finding]:
    """Say on what this machine computes, with which kernels and in which precision."""
    torch, gpus = facts["torch"], facts["torch"].get("gpus", [])
    if facts["nvidia_driver"] and not gpus and "error" not in torch:
        why = "is a build for CPUs" if not torch["cuda"] else f"(CUDA {torch['cuda']}) does not find it"
        yield Finding("GPU", "missing", f"an NVIDIA GPU is here, but torch {why}", "a CUDA build of torch that fits the driver")
    elif gpus:
        each = ", ".join(f"{gpu['name']}, {gpu['memory'] / _GB:.0f} GB, capability {gpu['capability']}" for gpu in gpus)
        yield Finding("GPU", "ok", f"{len(gpus)}: {each}; CUDA {torch['cuda'] or torch['hip']}")
        if "nccl" not in torch["collectives"]:
            yield Finding("collectives", "missing", "torch has no nccl", "a build of torch for GPUs")
    else:
        yield Finding("GPU", "note", "none: training runs on the CPU")
    yield _kernels(facts, on_gpu=bool(gpus))
    if gpus and not torch["bf16"]:
        yield Finding("precision", "note", "fp32; these GPUs have no bf16")
    else:
        yield Finding("precision", "ok", "fp32, or bf16 with fp32 masters (train.precision=bf16, train.zero=1 or 2)")
    if "version" in facts["deepspeed"]:
        compiled = len(facts["deepspeed"]["operations"])
        yield Finding("deepspeed ops", "ok", f"{compiled} could be compiled here; none is needed")


def _kernels(facts: dict[str, Any], *, on_gpu: bool) -> Finding:
    if "error" in facts["torch"]:
        return Finding("kernels", "missing", "none without torch")
    from dist_teracon.kernels.masked_dilated_conv_stack import backend_of

    try:
        backend, why = backend_of("cuda" if on_gpu else "cpu", os.environ.get("DIST_TERACON_KERNELS", ""))
    except ValueError as error:
        return Finding("kernels", "missing", "none", str(error))
    if backend == "triton" and on_gpu:
        version = facts["libraries"].get("triton", "")
        if not version or _numbers(version) < (3, 6):
            return Finding("kernels", "missing", f"triton {version or 'is not there'}", "pip install 'triton>=3.6'")
        if not facts["compiler"]:
            return Finding("kernels", "missing", f"triton {version} finds no C compiler", "install gcc")
        return Finding("kernels", "ok", f"triton {version} ({why})")
    return Finding("kernels", "ok", f"{backend} ({why})")


def _machine(facts: dict[str, Any]) -> Iterator[Finding]:
    yield Finding("processor", "ok", f"{facts['cores']} core(s), {facts['memory'] / _GB:.1f} GB of memory")
    yield _amount("disk", facts["disk_free"], _ENOUGH_DISK, "free here", "runs keep two checkpoints of a stage: --run on a larger disk")
    yield _amount(
        "/dev/shm",
        facts["shared_memory"],
        _ENOUGH_SHARED,
        "",
        "Ray and NCCL use it: docker run --shm-size=8g, or an emptyDir of medium Memory",
    )
    files = facts["open_files"]
    few = 0 <= files < _ENOUGH_FILES
    yield Finding("open files", "note" if few else "ok", str(files), "ulimit -n 65536 before Ray is started" if few else "")


def _amount(name: str, there: int, enough: int, what: str, mend: str) -> Finding:
    few = there < enough
    return Finding(name, "note" if few else "ok", f"{there / _GB:.1f} GB {what}".rstrip(), mend if few else "")


def _extras(facts: dict[str, Any]) -> Iterator[Finding]:
    for name, (what, extra) in _OPTIONAL.items():
        if version := facts["libraries"].get(name):
            yield Finding(name, "ok", f"{version}: {what}")
        else:
            yield Finding(name, "note", f"not there: no {what}", f"pip install 'dist-teracon[{extra}]'")


def _parts(facts: dict[str, Any]) -> Iterator[Finding]:
    """Name the parts that other packages bring, and those that are never used, as a part of this program has their name."""
    own = _own_parts() if facts["parts"] else {}
    for part in facts["parts"]:
        name = f"{part['kind'].removesuffix('s')} {part['name']}"
        if part["name"] in own.get(part["kind"], ()):
            yield Finding(name, "note", f"of {part['package']}: never used, there is one of this name", "another name in that package")
        else:
            yield Finding(name, "ok", f"of {part['package']}")


def _own_parts() -> dict[str, Collection[str]]:
    """Return the names of this program's own parts; none where its libraries are missing."""
    try:
        from dist_teracon.continual.registry import METHODS
        from dist_teracon.data.sources.registry import SOURCES
        from dist_teracon.evaluate.metrics import METRICS
        from dist_teracon.models.backbone import BACKBONES
    except ImportError:
        return {}
    return {"methods": METHODS, "backbones": BACKBONES, "sources": SOURCES, "metrics": METRICS}


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version up to the first part that is none: 2.13.0+cpu is (2, 13, 0)."""
    numbers: list[int] = []
    for part in version.split("+", maxsplit=1)[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _nodes(address: str, here: dict[str, Any]) -> dict[str, list[Finding]]:
    """Return the findings of every node of a cluster, which need not have this program.

    Raises:
        ConfigError: no cluster answers there.
    """
    import ray
    from ray import cloudpickle

    from dist_teracon.launch.ray_cluster import cluster_at

    cloudpickle.register_pickle_by_value(machine)
    reports: dict[str, list[Finding]] = {}
    try:
        with cluster_at(address, asked_by="--ray"):
            look: Any = ray.remote(num_cpus=0, max_retries=0)(machine.survey)
            for node in (node for node in ray.nodes() if node["Alive"]):
                name = f"node {node['NodeID'][:8]} ({node['NodeManagerAddress']})"
                reports[name] = _of_node(look.options(label_selector={"ray.io/node-id": node["NodeID"]}), node, here)
    finally:
        cloudpickle.unregister_pickle_by_value(machine)
    return reports


def _of_node(look: Any, node: dict[str, Any], here: dict[str, Any]) -> list[Finding]:
    import ray

    has = ", ".join(f"{amount:g} {name}" for name, amount in sorted(node["Resources"].items()) if name in ("CPU", "GPU"))
    try:
        facts = ray.get(look.remote(), timeout=120)
    except Exception as error:
        text = " ".join(str(error).split())[-300:]
        return [Finding("node", "missing", f"gives no answer ({type(error).__name__}: {text})", "look at Ray's log of that node")]
    findings = [Finding("offers Ray", "ok", has or "neither CPU nor GPU"), *check(facts)]
    for name, version in here["libraries"].items():
        other = facts["libraries"].get(name, "")
        if name in ("dist-teracon", *_OLDEST) and other and other != version:
            findings.append(Finding(f"{name} differs", "note", f"{other}, here {version}", "the same versions on every node"))
    known = {(part["kind"], part["name"]) for part in facts["parts"]}
    for part in here["parts"]:
        if (part["kind"], part["name"]) not in known:
            name, mend = f"{part['kind'].removesuffix('s')} {part['name']}", f"install {part['package']} on every node"
            findings.append(Finding(name, "note", "not there, and here it is", mend))
    return findings

"""What a machine has that matters here, as plain values; also run on the nodes of a cluster, which need not have this program.

So nothing of the program is imported where this file is, and heavy libraries only where they are looked at.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import resource
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# Distribution, and by what name it is imported.
LIBRARIES = {
    "dist-teracon": "dist_teracon",
    "torch": "torch",
    "deepspeed": "deepspeed",
    "ray": "ray",
    "triton": "triton",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "fsspec": "fsspec",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "s3fs": "s3fs",
    "gcsfs": "gcsfs",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "scikit-learn": "sklearn",
    "aiohttp-cors": "aiohttp_cors",
}


def survey(*, disk: str = ".") -> dict[str, Any]:
    """Return what this machine has: versions, processors, memory, disk, limits, GPUs.

    Args:
        disk: A folder on the disk that is looked at.
    """
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "disk_free": shutil.disk_usage(disk).free,
        "shared_memory": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "compiler": next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), ""),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "parts": _parts(),
        "nvidia_driver": _has_nvidia(),
        "torch": _torch(),
        "deepspeed": _deepspeed(),
    }


def _parts() -> list[dict[str, str]]:
    """Return what other packages bring of methods, backbones, sources and metrics (`dist_teracon.extensions`)."""
    found = []
    for kind in ("methods", "backbones", "sources", "metrics"):
        for entry in metadata.entry_points(group=f"dist_teracon.{kind}"):
            package = "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
            found.append({"kind": kind, "name": entry.name, "package": package})
    return found


def _memory() -> int:
    """Return the memory that this process may use, in bytes: the machine's, or what its container allows."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(whole, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return whole


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        module = LIBRARIES[name]
        there = importlib.util.find_spec(module) is not None
        return str(getattr(importlib.import_module(module), "__version__", "unknown")) if there else ""


def _has_nvidia() -> bool:
    return bool(list(Path("/dev").glob("nvidia[0-9]*"))) or Path("/proc/driver/nvidia/version").exists()


def _torch() -> dict[str, Any]:
    """Return what PyTorch is built for and sees; `error` where it cannot be imported."""
    try:
        import torch
        import torch.distributed as dist
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    gpus = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(number)
        gpus.append({"name": found.name, "memory": found.total_memory, "capability": f"{found.major}.{found.minor}"})
    backends = [name for name in ("gloo", "nccl") if dist.is_available() and dist.is_backend_available(name)]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or "",
        "hip": torch.version.hip or "",
        "gpus": gpus,
        "collectives": backends,
        "bf16": bool(gpus) and torch.cuda.is_bf16_supported(),
    }


def _deepspeed() -> dict[str, Any]:
    """Return whether DeepSpeed can be imported here; its own compiled operations are not used."""
    if importlib.util.find_spec("deepspeed") is None:
        return {}
    accelerator = os.environ.get("DS_ACCELERATOR")
    try:
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        deepspeed = importlib.import_module("deepspeed")
        operations = importlib.import_module("deepspeed.ops").__compatible_ops__
        return {"version": deepspeed.__version__, "operations": sorted(name for name, there in operations.items() if there)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        if accelerator is None and "deepspeed" not in sys.modules:
            os.environ.pop("DS_ACCELERATOR", None)

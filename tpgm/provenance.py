"""When, where and with which versions something was made, and what it took."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("tpgm", "torch", "torchvision", "timm", "accelerate", "numpy")


def provenance(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Versions of what is installed of `packages`, hardware and time, as JSON values."""
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    hardware = gpu or f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return {"versions": versions, "hardware": hardware, "time": datetime.now(UTC).isoformat(timespec="seconds")}


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU's memory since the process began, else of this process; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

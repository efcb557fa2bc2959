"""What the chapters' notebooks share: profiles that set the size of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

PROFILES = ("smoke", "quick", "full")


def settings(profile: str, **choices: Mapping[str, Any]) -> SimpleNamespace:
    """Pick each setting's value for a profile.

    ``settings("quick", draws={"smoke": 200, "quick": 10_000, "full": 10**6}).draws`` is 10 000.
    profile: "smoke" (seconds, for tests), "quick" (the book's build on 2 CPU cores) or "full". Raises ValueError
    for an unknown profile, and for a setting that does not name all three.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; choose one of {', '.join(map(repr, PROFILES))}")
    for name, values in choices.items():
        if set(values) != set(PROFILES):
            raise ValueError(f"setting {name!r} must name exactly {PROFILES}, got {tuple(values)}")
    return SimpleNamespace(**{name: values[profile] for name, values in choices.items()})


def record(**values: Any) -> None:
    """Put values into the result row of the sweep that runs this notebook; elsewhere nothing happens.

    values: what JSON can hold. Raises TypeError for anything else, wherever the notebook runs.
    """
    line = json.dumps(values)
    if path := os.environ.get("TPGM_RECORD"):
        with open(path, "a", encoding="utf8") as file:
            file.write(line + "\n")


def hardware() -> str:
    """One line: the GPU that PyTorch found, or what to do to get one in Colab."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU found; in Colab choose one under Runtime > Change runtime type"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"GPU: {torch.cuda.get_device_name(0)}, {memory:.0f} GB"

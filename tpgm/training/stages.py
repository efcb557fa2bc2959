"""Stages that several runs share, computed once: the head, and ordinary fine-tuning."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from tpgm.files import make_folder, read_state, write_state
from tpgm.methods.base import Method, Stage
from tpgm.training.checkpoint import VERSION

COMMON = tuple(f.name for f in fields(Method))  # settings of every method


class StageStore:
    """Results of stages in the folder `root`, each in a file named by everything the result depends on.

    What is taken from it equals, bit for bit, what computing the stage again on the same machine would give.
    """

    def __init__(self, root: Path) -> None:
        """Make the folder. Raises OSError if it cannot be made."""
        self.root = root
        make_folder(root, "store")

    def file(self, stages: list[Stage], identity: dict[str, Any]) -> Path:
        """The file of the last of `stages`, the others being those before it; identity: of the run."""
        last = stages[-1]
        own = ("workers", "anchor_head") + (() if last.name == "weights" else ("epochs", "lr"))
        settings = {name: identity["settings"][name] for name in COMMON if name not in own}
        named = {**identity, "method": None, "settings": settings, "stages": [(s.name, s.steps) for s in stages]}
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
        return self.root / f"{last.name}-{digest[:24]}.pt"

    @staticmethod
    def read(file: Path, device: torch.device) -> dict[str, Any]:
        """Raises ValueError, naming file and cure, if it is damaged."""
        return read_state(file, VERSION, device)

    @staticmethod
    def write(file: Path, state: dict[str, Any]) -> None:
        """What was computed is not given up for a full disk: if the file cannot be written, a warning names it."""
        own = file.with_name(f"{file.stem}.{os.getpid()}")  # another process may be writing the same
        try:
            write_state(own, VERSION, state)
            os.replace(own, file)
        except OSError as error:
            warnings.warn(f"the stage is not kept for other runs: {error}", stacklevel=2)

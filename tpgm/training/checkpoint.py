"""Exact resume: where a run is, and the file it goes on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tpgm.files import read_state, write_state

VERSION = 2  # of the files' content
NAME = "checkpoint.pt"


@dataclass
class Progress:
    """Where a run is; with the states of model, optimizer and learner this is all there is to resume.

    stage: number of the stage, step: steps of it that are done; seconds: of training so far; best, since_best: highest
    ID validation accuracy and the number of epochs since; learned: ratios and radii by parameter name.
    """

    stage: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    learned: tuple[dict[str, float], dict[str, float]] = field(default_factory=lambda: ({}, {}))


class Checkpoints:
    """The checkpoint of one run in `folder`; without a folder nothing is kept.

    identity: what another run's checkpoint would differ in. every: seconds of training between two of them. writes:
    whether this process writes them.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], every: float, writes: bool) -> None:
        self.path = None if folder is None else folder / NAME
        self.identity, self.every, self.writes, self.last = identity, every, writes, 0.0

    def save(self, progress: Progress, state: Callable[[], dict[str, Any]], force: bool) -> None:
        """Write a checkpoint if it is time to, or in any case with `force`. Raises OSError naming the file."""
        if not force and progress.seconds - self.last <= self.every:
            return
        self.last = progress.seconds
        if self.path is not None and self.writes:
            write_state(self.path, VERSION, {"identity": self.identity, "progress": asdict(progress), **state()})

    def load(self, device: torch.device) -> tuple[Progress, dict[str, Any]] | None:
        """Progress and states of an interrupted run; None if there is none.

        Raises ValueError, naming file and cure, if it is damaged or another run's.
        """
        if self.path is None or not self.path.exists():
            return None
        state = read_state(self.path, VERSION, device)
        theirs = state.pop("identity")
        if theirs != self.identity:
            different = [key for key in self.identity if self.identity[key] != theirs.get(key)]
            raise ValueError(
                f"{self.path} is of another run (different: {', '.join(different)}); choose another folder or delete it"
            )
        progress = Progress(**state.pop("progress"))
        self.last = progress.seconds
        return progress, state

    def delete(self) -> None:
        """What a finished run does not need any more."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

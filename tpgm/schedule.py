"""When to update the radii: every k training steps, k chosen from how fast the radii still move."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tpgm.constraint import TPGM

MEMORY = 0.5  # share of the earlier speed in the running mean: noise of single updates cancels, drift stays


class Adaptive:
    """Makes projection updates as rare as the radii allow, for about the run that an update at every step would give.

    An update costs a forward and a backward pass. Radii grow from nothing while the weights leave their anchor, then
    settle, so that most updates say little new. After each update this class takes the speed of every radius,
    ``v = (γ_new − γ_old)/max(γ_new, γ_old)`` for each training step (signed, a running mean; 1 for a radius that has
    just begun), which is how fast the tensor's ratio would move at a given displacement, and waits
    ``k = tolerance / mean |v|`` steps: until ratios are expected to have moved by the share `tolerance`. k is at least
    1, at most `longest`, and at most doubles from one update to the next. An update that stands for k steps has k times
    the learning rate, so that radii keep their pace. A growing radius needs about 1/tolerance updates to begin with,
    and then one for each growth of the run's length by the share `tolerance`.

    ``step()`` after each optimizer step says whether an update is due; ``covering(constraint)`` is the context to make
    it in (several updates may be in it)::

        if schedule.step():
            with schedule.covering(constraint):
                constraint.update(closure)
            constraint.project_()

    Between updates the weights move freely: project once more after the last step. Raises ValueError for a tolerance
    that is not a finite number above 0 or a longest wait that is not a whole number of at least 1.
    """

    def __init__(self, tolerance: float = 0.25, longest: int = 64) -> None:
        if not (tolerance > 0 and math.isfinite(tolerance)):
            raise ValueError(f"tolerance must be a finite number above 0, got {tolerance!r}")
        if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
            raise ValueError(f"longest must be a whole number of at least 1, got {longest!r}")
        self.tolerance, self.longest = tolerance, longest
        self.wait, self.since, self.updates = 1, 0, 0
        self._speed: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Adaptive(tolerance={self.tolerance}, longest={self.longest}, updates={self.updates}, wait={self.wait})"

    def step(self) -> bool:
        """Count a training step; whether an update is due after it."""
        self.since += 1
        return self.since >= self.wait

    @contextmanager
    def covering(self, constraint: TPGM) -> Iterator[None]:
        """Context for the update (or updates) that stand for the steps since the last; sets how long to wait next.

        Inside, the radii's Adam has its learning rate times the number of steps; an error leaves all as it was.
        """
        steps, before = max(1, self.since), constraint.radii
        rates = [group["lr"] for group in constraint.optimizer.param_groups]
        for group in constraint.optimizer.param_groups:
            group["lr"] = group["lr"] * steps
        try:
            yield
        finally:
            for group, rate in zip(constraint.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self._note(before, constraint.radii, steps)

    def _note(self, before: Mapping[str, float], after: Mapping[str, float], steps: int) -> None:
        for name, radius in after.items():
            if math.isinf(radius):
                continue  # no constraint yet, and no ratio that could move
            old = before[name]
            now = 1.0 if math.isinf(old) else (radius - old) / max(radius, old)
            self._speed[name] = MEMORY * self._speed.get(name, now / steps) + (1 - MEMORY) * now / steps
        speed = sum(map(abs, self._speed.values())) / max(1, len(self._speed))
        calm = self.longest if speed == 0 else min(self.longest, self.tolerance / speed)
        self.wait = max(1, min(int(calm), 2 * self.wait))
        self.since, self.updates = 0, self.updates + 1

    def state_dict(self) -> dict[str, Any]:
        """Numbers by name, from which `load_state_dict` goes on exactly."""
        return {"wait": self.wait, "since": self.since, "updates": self.updates, "speed": dict(self._speed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises ValueError for something else than such a state."""
        if absent := {"wait", "since", "updates", "speed"} - set(state):
            raise ValueError(f"not a state of Adaptive: it lacks {', '.join(sorted(absent))}")
        self.wait, self.since, self.updates = state["wait"], state["since"], state["updates"]
        self._speed = dict(state["speed"])

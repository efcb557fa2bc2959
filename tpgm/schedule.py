"""When to update the radii: every k training steps, k chosen from how fast the radii still move."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    1, at most `longest`, and at most doubles from one update to the next. An update that stands for k steps moves a
    radius up to k times as far, so that radii keep their pace, but no further than by the share `tolerance` (see
    `TPGM.update`). A growing radius needs about 1/tolerance updates to begin with, and then one for each growth of the
    run's length by the share `tolerance`.

    ``step()`` after each optimizer step says whether an update is due; ``observe`` follows the update::

        if schedule.step():
            constraint.update(closure, covers=schedule.since, limit=schedule.tolerance)
            schedule.observe(constraint)
            constraint.project_()

    Between updates the weights move freely: project once more after the last step. Raises ValueError for a tolerance
    that is not a finite number above 0 or a longest wait that is not a whole number of at least 1.
    """

    def __init__(self, tolerance: float = 0.5, longest: int = 64) -> None:
        if not (tolerance > 0 and math.isfinite(tolerance)):
            raise ValueError(f"tolerance must be a finite number above 0, got {tolerance!r}")
        if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
            raise ValueError(f"longest must be a whole number of at least 1, got {longest!r}")
        self.tolerance, self.longest = tolerance, longest
        self.wait, self.since, self.updates = 1, 0, 0
        self._speed: dict[str, float] = {}
        self._radii: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Adaptive(tolerance={self.tolerance}, longest={self.longest}, updates={self.updates}, wait={self.wait})"

    def step(self) -> bool:
        """Count a training step; whether an update is due after it."""
        self.since += 1
        return self.since >= self.wait

    def observe(self, constraint: TPGM) -> None:
        """To be called after the update (or updates) of a step: looks at the radii and sets how long to wait."""
        radii, steps = constraint.radii, max(1, self.since)
        for name, radius in radii.items():
            if math.isinf(radius):
                continue  # no constraint yet, and no ratio that could move
            old = self._radii.get(name, math.inf)
            now = 1.0 if math.isinf(old) else (radius - old) / max(radius, old) / steps
            self._speed[name] = MEMORY * self._speed.get(name, now) + (1 - MEMORY) * now
        speed = sum(map(abs, self._speed.values())) / max(1, len(self._speed))
        calm = self.longest if speed == 0 else min(self.longest, self.tolerance / speed)
        self.wait = max(1, min(int(calm), 2 * self.wait))
        self.since, self.updates, self._radii = 0, self.updates + 1, radii

    def state_dict(self) -> dict[str, Any]:
        """Numbers by name, from which `load_state_dict` goes on exactly."""
        counts = {"wait": self.wait, "since": self.since, "updates": self.updates}
        return {**counts, "speed": dict(self._speed), "radii": dict(self._radii)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises ValueError for something else than such a state."""
        if absent := {"wait", "since", "updates", "speed", "radii"} - set(state):
            raise ValueError(f"not a state of Adaptive: it lacks {', '.join(sorted(absent))}")
        self.wait, self.since, self.updates = state["wait"], state["since"], state["updates"]
        self._speed, self._radii = dict(state["speed"]), dict(state["radii"])

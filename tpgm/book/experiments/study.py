"""One schema for all studies: what is run, how a setting is chosen, and what is run beside.

A study is data. Each entry tries its values on the search seed; the value with the highest ID validation accuracy runs
on the other seeds. OOD data have no say. Studies themselves stand in `icon_studies`, `text_study` and `full_scale`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tpgm import methods
from tpgm.book.experiments import experiment
from tpgm.book.experiments.experiment import Config, Row, append, key, missing, read
from tpgm.book.experiments.variants import Variant, select
from tpgm.check import hint
from tpgm.files import require_writable

Settings = Mapping[str, Any]
SEEDS = (0, 1, 2)
SEARCH_SEED = 0


@dataclass(frozen=True)
class Entry:
    """One line of a study: a method, its own settings, and the setting that is searched.

    settings: stand before the study's budget. tried, values: the setting searched and its values; without values there
    is one configuration and nothing to choose. grid: the values of further settings, tried in every combination. fixed:
    the one of `values` that runs on every seed, whatever is chosen.
    config: keys of its own, beside those of the study. published: the settings that a paper states.
    """

    method: str
    settings: Settings = field(default_factory=dict)
    tried: str = ""
    values: tuple[Any, ...] = ()
    fixed: Any = None
    config: Mapping[str, Any] = field(default_factory=dict)
    published: frozenset[str] = frozenset()
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def searched(self) -> dict[str, tuple[Any, ...]]:
        """The values of every setting that is searched, by name."""
        return {**({self.tried: self.values} if self.values else {}), **self.grid}


@dataclass(frozen=True)
class Study:
    """name: also of its file of rows, with "-" for ":". config: keys of `experiment.KEYS` that all runs share.

    budget: settings of all methods that have them; published: those of them that a paper states. entries: by label, the
    name in tables. small: by profile, keys of the configuration to change and upper bounds of settings, for a shorter
    run. weights: what the checkpoint is, where the reader brings it. reported: a paper's ID and mean OOD accuracy in
    per cent, by label. redraw: each seed draws other training data, else only order, head and augmentation. final: keys
    of the configuration in which the chosen settings, on `seeds`, differ from the search: other data, for instance.
    """

    name: str
    about: str
    config: Mapping[str, Any]
    budget: Settings
    entries: Mapping[str, Entry]
    seeds: tuple[int, ...] = SEEDS
    search_seed: int = SEARCH_SEED
    small: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=dict)
    published: frozenset[str] = frozenset()
    weights: str = ""
    reported: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    redraw: bool = False
    final: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"{self.name.replace(':', '-')}.jsonl"

    def known(self, labels: Sequence[str] = ()) -> list[str]:
        """These labels, or all. Raises ValueError for one that the study does not have."""
        for label in labels:
            if label not in self.entries:
                near = hint(label, self.entries)
                raise ValueError(f"{self.name} has no label {label!r}; {near}choose among {', '.join(self.entries)}")
        return list(labels or self.entries)

    def at(self, **config: Any) -> Study:
        """The study with other shared keys, such as root and model."""
        return replace(self, config={**self.config, **config})

    def on(self, seed: int) -> Study:
        """The study on one seed only."""
        return replace(self, seeds=(seed,), search_seed=seed)

    def shortened(self, profile: str) -> Study:
        """The study in little, by `small`, for a chapter's own run. Raises ValueError for an unknown profile."""
        if profile not in self.small:
            raise ValueError(f"{self.name} has no profile {profile!r}; choose one of {', '.join(self.small) or 'none'}")
        changes, most = self.small[profile]

        def shorter(settings: Settings) -> Settings:
            cut = {n: most[n] if isinstance(v, str) else min(v, most[n]) for n, v in settings.items() if n in most}
            return {**settings, **cut}

        entries = {
            label: replace(entry, settings=shorter(entry.settings), config={**entry.config, **changes})
            for label, entry in self.entries.items()
        }
        return replace(self, budget=shorter(self.budget), entries=entries)

    def configs(self, label: str, seed: int | None = None) -> list[Config]:
        """The configurations tried for a label, on the search seed unless another is given."""
        entry = self.entries[self.known([label])[0]]
        valid = methods.options(entry.method)
        settings = {name: value for name, value in self.budget.items() if name in valid} | dict(entry.settings)
        if not settings.get("head_epochs", 1):
            settings.pop("head_lr", None)  # of a stage that this entry does not have
        shared = {**self.config, **entry.config, "label": label, "method": entry.method}
        shared |= self._seeded(self.search_seed if seed is None else seed)
        names, values = entry.searched.keys(), itertools.product(*entry.searched.values())
        return [{**shared, "settings": {**settings, **dict(zip(names, own, strict=True))}} for own in values]

    def choose(self, label: str, rows: Sequence[Row]) -> Config:
        """The configuration with the highest ID validation accuracy; among equals the first.

        Raises ValueError if a candidate has no row.
        """
        candidates, by_key = self.configs(label), {key(row["config"]): row for row in rows}
        if absent := [c for c in candidates if key(c) not in by_key]:
            raise ValueError(f"{len(absent)} of {len(candidates)} candidates of {label!r} have not been run")
        return max(candidates, key=lambda c: by_key[key(c)]["val"])

    def plan(self, rows: Sequence[Row], labels: Sequence[str] = ()) -> Iterator[Config]:
        """All configurations that can be named by now, run or not: each label's search, then what follows from it.

        `rows` may grow while this is iterated over.
        """
        for label in self.known(labels):
            candidates, fixed = self.configs(label), self._fixed(label)
            yield from candidates
            if missing(candidates, rows):
                continue
            finals = [self.choose(label, rows)]
            finals += [c for c in fixed if c not in finals]
            seeds = [seed for seed in self.seeds if self.final or seed != self.search_seed]
            yield from ({**c, **self.final, **self._seeded(seed)} for c in finals for seed in seeds)

    def _seeded(self, seed: int) -> Mapping[str, int]:
        return {"seed": seed, "data_seed": seed} if self.redraw else {"seed": seed}

    def due(self, rows: Sequence[Row], labels: Sequence[str] = ()) -> Iterator[Config]:
        """What `plan` names and no row is of."""
        return (config for config in self.plan(rows, labels) if missing([config], rows))

    def run(
        self,
        out: str | Path,
        *,
        labels: Sequence[str] = (),
        store: str | Path | None = None,
        keep: Path | None = None,
        progress: bool = False,
        until: float = math.inf,
    ) -> int:
        """Run what no row of the file `out` is of yet, adding each row at once; returns how many were run.

        store: see `tpgm.finetune`. keep: a folder where each run keeps checkpoint and model, and an interrupted one
        goes on. until: seconds of the clock (`time.time`) after which no run begins. Raises ValueError for an unknown
        label, OSError if `out` cannot be written, before anything is run, else what `experiment.run` raises.
        """
        path, count = Path(out), 0
        require_writable(path)
        rows = read(path) if path.is_file() else []
        for config in self.due(rows, labels):
            if time.time() > until:
                break
            digest = hashlib.sha256(key(config).encode()).hexdigest()[:12]
            own = keep and keep / f"{self.name.replace(':', '-')}-{config['method']}-{config['seed']}-{digest}"
            row = experiment.run(config, progress=progress, out=own, store=store)
            append(path, row)
            rows.append(row)
            count += 1
            print(self._told(row), flush=True)
        return count

    def _told(self, row: Row) -> str:
        config = row["config"]
        choice = self.choice(config["label"], config)
        ood = "" if row["ood"] is None else f" OOD {100 * row['ood']:.1f}"
        scores = f"val {100 * row['val']:.1f} ID {100 * row['id']:.1f}{ood}"
        return f"{self.name} {config['label']} seed {config['seed']} {choice}: {scores} in {row['seconds']:.0f} s"

    def choice(self, label: str, config: Mapping[str, Any]) -> str:
        """The values of what is searched for a label, as text, such as "lr=0.001"; "" where nothing is."""
        return ", ".join(f"{name}={config['settings'][name]:g}" for name in self.entries[label].searched)

    def chosen(self, rows: Sequence[Row], labels: Sequence[str] = ()) -> dict[str, Variant]:
        """Each label's chosen setting over its seeds; labels whose search is not complete are left out."""
        found = {}
        for label in self.known(labels):
            if not missing(self.configs(label), rows):
                config = self.choose(label, rows)
                found[label] = Variant(label, self.choice(label, config), select(rows, {**config, **self.final}))
        return found

    def fixed(self, rows: Sequence[Row]) -> dict[str, Variant]:
        """The settings that run whatever is chosen, under the names "vanilla, lr=0.0003" and so on."""
        found = {}
        for label in self.entries:
            for config in self._fixed(label):
                choice = self.choice(label, config)
                if of := select(rows, {**config, **self.final}):
                    found[f"{label}, {choice}"] = Variant(f"{label}, {choice}", choice, of)
        return found

    def _fixed(self, label: str) -> list[Config]:
        entry = self.entries[label]
        return [c for c in self.configs(label) if entry.tried and c["settings"][entry.tried] == entry.fixed]

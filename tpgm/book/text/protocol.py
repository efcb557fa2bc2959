"""The text example's protocol as data. It was committed before the runs it governs.

Fine-tuned on 5 % of the airline tweets (666), tested on 400 others and on 200 of each other topic. For each method
three settings on seed 0; the one with the highest accuracy on 300 ID validation tweets is run with seeds 1 and 2; other
topics have no say. The weights of LP-FT from which WiSE-FT and TPGM at the end start are run with all seeds too,
whatever was chosen (added once the first rows were there; it chooses nothing). Methods see about the same number of
training steps. Runs are in bfloat16 autocast, so that two shared cores can do them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tpgm.book.experiments.experiment import Config, Row, missing, read, run_each
from tpgm.book.experiments.protocol import SEARCH_SEED, SEEDS, choose
from tpgm.book.experiments.results import Summary, select

BASE: Config = {"data": "tweets", "model": "minilm", "size": 40, "fraction": 5.0}
BUDGET: dict[str, Any] = {
    "epochs": 2,
    "head_epochs": 2,
    "head_lr": 1e-2,
    "lr": 1e-4,
    "batch_size": 16,
    "augment": False,  # texts have none
    "precision": "bf16",
    "workers": 0,
}
_NO_HEAD: dict[str, Any] = {"head_epochs": 0, "head_lr": 3e-3}  # for methods without that stage
_RADII: dict[str, Any] = {"val_batch_size": 16, "norm": "mars"}

# label: (method, settings that differ from the budget, setting tried, its three values)
TRIED: dict[str, tuple[str, dict[str, Any], str, tuple[float, ...]]] = {
    "linear-probe": ("linear-probe", {**_NO_HEAD, "epochs": 4}, "lr", (1e-3, 3e-3, 1e-2)),
    "lp-ft": ("lp-ft", {}, "lr", (3e-5, 1e-4, 3e-4)),
    "wise-ft": ("wise-ft", {}, "alpha", (0.25, 0.5, 0.75)),
    "tpgm-end": ("tpgm-end", {**_RADII, "updates": 40}, "radius_lr", (1e-2, 1e-1, 1.0)),
    "vanilla": ("vanilla", {**_NO_HEAD, "epochs": 3}, "lr", (3e-5, 1e-4, 3e-4)),
    "ftp": ("ftp", {}, "kappa", (1.0, 0.5, 0.0)),
    "spd": ("spd", {}, "strength", (0.3, 1.0, 3.0)),
    "tpgm": ("tpgm", _RADII, "radius_lr", (1e-2, 1e-1, 1.0)),
}


def configs(label: str, seed: int) -> list[Config]:
    """The configurations tried for a label."""
    method, own, name, values = TRIED[label]
    shared = {**BUDGET, **own}
    return [
        {**BASE, "label": label, "method": method, "seed": seed, "settings": {**shared, name: value}}
        for value in values
    ]


def reduced(config: Config, profile: str) -> Config:
    """The same in little, for a chapter's own run; at "smoke" on invented tweets with a random model."""
    settings = {n: min(v, 10 if n == "updates" else 1) if n in ("epochs", "head_epochs", "updates") else v
                for n, v in config["settings"].items()}  # fmt: skip
    small = {"source": "tiny", "fraction": 20.0} if profile == "smoke" else {"fraction": 1.0}
    return {**config, **small, "settings": settings}


def due(rows: Sequence[Row], labels: Sequence[str] = ()) -> Iterator[Config]:
    """What is still to run, in order: each label's search, then the chosen setting on the other seeds.

    `rows` may grow while this is iterated over.
    """
    for label in labels or TRIED:
        candidates = configs(label, SEARCH_SEED)
        yield from missing(candidates, rows)
        finals = [choose(candidates, rows)]
        if label == "lp-ft":
            finals += [c for c in candidates if c["settings"]["lr"] == BUDGET["lr"] and c not in finals]
        yield from missing([{**c, "seed": seed} for c in finals for seed in SEEDS if seed != SEARCH_SEED], rows)


def run_all(out: str | Path, *, labels: Sequence[str] = (), store: str | Path | None = None) -> int:
    """Run what no row of the file `out` is of yet, adding a row for each; returns how many were run.

    Raises ValueError for an unknown label, else what `tpgm.book.experiments.experiment.run` raises.
    """
    if unknown := sorted(set(labels) - set(TRIED)):
        raise ValueError(f"unknown label {unknown[0]!r}; choose among {', '.join(TRIED)}")
    path = Path(out)
    rows = read(path) if path.is_file() else []

    def tell(row: Row) -> str:
        config = row["config"]
        name = TRIED[config["label"]][2]
        return (
            f"{config['label']} seed {config['seed']} {name}={config['settings'][name]:g}: val {100 * row['val']:.1f} "
            f"ID {100 * row['id']:.1f} OOD {100 * row['ood']:.1f} (F1 {100 * row['ood_f1']:.1f}) in "
            f"{row['seconds']:.0f} s"
        )

    return run_each(due(rows, labels), path, rows, tell, store=store)


def chosen(rows: Sequence[Row]) -> dict[str, Summary]:
    """Each label's chosen setting over the seeds; labels whose search is not complete are left out."""
    found: dict[str, Summary] = {}
    for label, (_, _, name, _) in TRIED.items():
        try:
            config: Mapping[str, Any] = choose(configs(label, SEARCH_SEED), rows)
        except ValueError:
            continue
        choice = f"{name}={config['settings'][name]:g}"
        found[label] = Summary(label, choice, tuple(select(rows, config)))
    return found


def start(rows: Sequence[Row]) -> Summary:
    """LP-FT with the budget's learning rate: the weights from which WiSE-FT and TPGM at the end start."""
    (config,) = (c for c in configs("lp-ft", SEARCH_SEED) if c["settings"]["lr"] == BUDGET["lr"])
    return Summary("lp-ft, same weights", f"lr={BUDGET['lr']:g}", tuple(select(rows, config)))

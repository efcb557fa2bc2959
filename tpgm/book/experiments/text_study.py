"""The study of texts as data. It was committed before the runs it governs.

Fine-tuned on 5 % of the airline tweets (666), tested on 400 others and on 200 of each other topic; settings are chosen
on 300 ID validation tweets. The weights of LP-FT from which WiSE-FT and TPGM at the end start are run with all seeds
too, whatever was chosen (added once the first rows were there; it chooses nothing). Methods see about the same number
of training steps. Runs are in bfloat16 autocast, so that two shared cores can do them.
"""

from __future__ import annotations

from typing import Any

from tpgm.book.experiments.study import Entry, Study

_NO_HEAD: dict[str, Any] = {"head_epochs": 0}
_RADII: dict[str, Any] = {"val_batch_size": 16, "norm": "mars"}
_RATES = (3e-5, 1e-4, 3e-4)
_STEPS = (1e-2, 1e-1, 1.0)

TEXT = Study(
    "text",
    "sentiment of tweets about airlines, tested on five other topics, from MiniLM's weights",
    config={"data": "tweets", "model": "minilm", "size": 40, "fraction": 5.0},
    budget={
        "epochs": 2,
        "head_epochs": 2,
        "head_lr": 1e-2,
        "lr": 1e-4,
        "batch_size": 16,
        "augment": False,  # texts have none
        "precision": "bf16",
        "workers": 0,
    },
    entries={
        "linear-probe": Entry("linear-probe", {**_NO_HEAD, "epochs": 4}, "lr", (1e-3, 3e-3, 1e-2)),
        "lp-ft": Entry("lp-ft", {}, "lr", _RATES, fixed=1e-4),
        "wise-ft": Entry("wise-ft", {}, "alpha", (0.25, 0.5, 0.75)),
        "tpgm-end": Entry("tpgm-end", {**_RADII, "updates": 40}, "radius_lr", _STEPS),
        "vanilla": Entry("vanilla", {**_NO_HEAD, "epochs": 3}, "lr", _RATES),
        "ftp": Entry("ftp", {}, "kappa", (1.0, 0.5, 0.0)),
        "spd": Entry("spd", {}, "strength", (0.3, 1.0, 3.0)),
        "tpgm": Entry("tpgm", _RADII, "radius_lr", _STEPS),
    },
    small={
        # bfloat16 takes minutes on a CPU that has no instructions for it
        "quick": ({"fraction": 1.0}, {"epochs": 1, "head_epochs": 1, "updates": 10, "precision": "no"}),
        "smoke": ({"source": "tiny", "fraction": 20.0}, {"epochs": 1, "head_epochs": 1, "updates": 10}),
    },
)

"""Every study by its name."""

from __future__ import annotations

from tpgm.book.experiments.full_scale import RECIPES
from tpgm.book.experiments.icon_studies import BESIDE, COMPARISONS, REGIME_STUDIES, ZERO_SHOT_STUDIES, beside
from tpgm.book.experiments.study import Study
from tpgm.book.experiments.text_study import TEXT
from tpgm.check import hint

STUDIES: dict[str, Study] = {**COMPARISONS, TEXT.name: TEXT, **ZERO_SHOT_STUDIES, **REGIME_STUDIES}


def find_study(name: str) -> Study:
    """A study such as "resnet:upstream", "text", "ablations:icons-resnet" (any model's name) or a full-scale recipe.

    Raises ValueError naming those there are.
    """
    what, _, model = str(name).partition(":")
    if what in BESIDE and model:
        return beside(what, model)
    if found := {**STUDIES, **RECIPES}.get(str(name)):
        return found
    known = ", ".join([*STUDIES, *(f"{what}:MODEL" for what in BESIDE), *RECIPES])
    raise ValueError(f"unknown study {name!r}; {hint(name, STUDIES)}choose one of {known}")

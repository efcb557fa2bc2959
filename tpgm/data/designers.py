"""Who drew what, and on which side of the split each designer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tpgm.data.iconify import concepts

SPLITS = ("train", "val", "test")
SHARES = (0.5, 0.2, 0.3)


def designer(author: str) -> str:
    """The designer's name, one for all who share drawings (a set redrawn or extended under another name)."""
    groups: list[list[str]] = concepts()["same_designer"]
    return next((group[0] for group in groups if author in group), author)


def designer_splits() -> dict[str, str]:
    """Designer -> "val" or "test" as the package fixes it; all others are in train."""
    return {name: split for split, names in concepts()["designer_splits"].items() for name in names}


def balanced_split(counts: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Deal designers to train, validation and test so that each style's icons come near 50, 20 and 30 %.

    counts: designer -> number of icons in each style. From the largest designer to the smallest (ties by name), each
    goes where its icons, as shares of their styles, are missed most relative to the target (if equally: train, then
    test). This is how the lists in ``icon_concepts.json`` were made; they are stored so that a later change to one set
    does not move the others.
    """
    totals = [max(1, sum(column)) for column in zip(*counts.values(), strict=True)]
    have = {split: [0.0] * len(totals) for split in SPLITS}
    result = {}
    for name in sorted(counts, key=lambda name: (-sum(counts[name]), name)):
        share = [count / total for count, total in zip(counts[name], totals, strict=True)]

        def missed(split: str, share: Sequence[float] = share) -> float:
            target = SHARES[SPLITS.index(split)]
            return sum(s * (1 - h / target) for s, h in zip(share, have[split], strict=True))

        best = max(("train", "test", "val"), key=missed)  # the first of equals
        have[best] = [h + s for h, s in zip(have[best], share, strict=True)]
        result[name] = best
    return result

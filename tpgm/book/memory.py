"""Bytes that fine-tuning and TPGM hold, worked out from counts of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

# rounded counts, for tables
SIZES: Mapping[str, int] = {
    "ResNet-50": 25_557_032,
    "ViT-B/16": 86_567_656,
    "1 G": 10**9,
    "7 G": 7 * 10**9,
    "70 G": 70 * 10**9,
}


def memory(
    weights: int,
    *,
    constrained: float = 1.0,
    dtype: torch.dtype = torch.float32,
    anchor: torch.dtype | Literal["host"] | None = None,
    keep_copy: bool = False,
    moments: int = 2,
) -> dict[str, int]:
    """Bytes by purpose, without activations, for a model of so many `weights` in `dtype`.

    constrained: the share in [0, 1] of the weights under a constraint. anchor: the type it is kept in, by default that
    of the weights, or "host" for `anchor_device="cpu"` beside a GPU. keep_copy: as in `tpgm.TPGM` on a CPU. moments:
    of the optimizer, in the weights' type (2 for Adam). "vanilla" counts weights, gradients and moments, "anchor" what
    TPGM holds all the time, "host" what of this lies in the host's memory, "update" what is held besides while a
    projection update runs: the copy of the weights (if not kept) and the gradients of the validation loss, where the
    training gradients are freed before (``zero_grad(set_to_none=True)``) these take their place and "beyond" leaves
    them out. "beyond" is the peak over vanilla, host memory apart. Raises ValueError for a count below 0 or a share
    outside [0, 1].
    """
    if weights < 0 or not 0 <= constrained <= 1:
        raise ValueError(f"weights must be at least 0 and constrained in [0, 1], got {weights} and {constrained}")
    size, bound = dtype.itemsize, round(weights * constrained)
    kept_as = dtype if anchor is None or anchor == "host" else anchor
    held, copy = bound * kept_as.itemsize, bound * size
    here = 0 if anchor == "host" else held
    return {
        "vanilla": weights * size * (2 + moments),
        "anchor": here + copy * keep_copy,
        "host": held - here,
        "update": copy * (not keep_copy) + weights * size,
        "beyond": here + copy,
    }

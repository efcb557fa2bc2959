"""WiSE-FT: one ratio for all weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from tpgm.anchor import anchor_tensors, match_anchor
from tpgm.names import aliases, as_patterns, canonical, matches, require_match, unwrap

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def interpolate(
    model: Model, anchor: nn.Module | Mapping[str, Tensor], alpha: float, *, exclude: Sequence[str] = ()
) -> Model:
    """WiSE-FT (arXiv 2109.01903): a copy of the model with weights ``θ⁰ + α (θ − θ⁰)``; the model stays untouched.

    anchor: module or state dict with the pre-trained weights θ⁰. alpha: 0 gives the anchor, 1 the model; values
    outside [0, 1] extrapolate. exclude: fnmatch patterns of parameters kept as in `model` (a head without a
    counterpart). Floating-point buffers (BatchNorm statistics) are interpolated where the anchor has them.
    Raises ValueError for an anchor that does not fit, a pattern that matches nothing, or an alpha that is not finite.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be a finite number, got {alpha}")
    exclude = as_patterns(exclude, "exclude")
    given = anchor_tensors(anchor, model)
    for pattern in exclude:
        require_match(pattern, [*aliases(model), *given], "exclude")
    tied = {id(p) for name, p in aliases(model).items() if matches(name, exclude)}
    names = [canonical(name) for name, p in unwrap(model).named_parameters() if id(p) not in tied]
    start = match_anchor(model, anchor, names, exclude)
    result = copy.deepcopy(model)
    targets = dict(aliases(result).items())
    for name, tensor in start.items():
        targets[name].lerp_(tensor.to(targets[name]), 1.0 - alpha)
    for name, buffer in unwrap(result).named_buffers():
        own = given.get(canonical(name))
        if own is not None and buffer.is_floating_point() and not matches(canonical(name), exclude):
            buffer.lerp_(own.to(buffer), 1.0 - alpha)
    return result

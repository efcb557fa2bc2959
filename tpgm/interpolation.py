"""WiSE-FT: one ratio for all weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tpgm.anchor import Model, anchor_tensors, copy_of, match_anchor, refuse_shared
from tpgm.buffers import Batches, Buffers, FollowingBuffers, check_buffers, reestimate
from tpgm.names import aliases, as_patterns, canonical, matches, require_match, unwrap


@torch.no_grad()
def interpolate(
    model: Model,
    anchor: nn.Module | Mapping[str, Tensor],
    alpha: float | Mapping[str, float],
    *,
    exclude: Sequence[str] = (),
    buffers: Buffers | None = None,
    batches: Batches | None = None,
) -> Model:
    """WiSE-FT (arXiv 2109.01903): a copy of the model with weights ``θ⁰ + α (θ − θ⁰)``; the model stays untouched.

    anchor: module or state dict with the pre-trained weights θ⁰. alpha: 0 gives the anchor, 1 the model; values
    outside [0, 1] extrapolate. A mapping gives each parameter with an anchor a ratio of its own, by name, such as
    `tpgm.TPGM.ratios` gives. exclude: fnmatch patterns of parameters kept as in `model` (a head without a counterpart).

    buffers: what BatchNorm's running statistics become, as in `tpgm.TPGM`. "move": floating-point buffers are
    interpolated as weights are. "keep": they stay the model's. "reestimate": they are estimated anew from `batches`
    with the interpolated weights, by `tpgm.buffers.reestimate`. None, the default, is "move" where the anchor has
    buffers, which is what averaging two state dicts does.

    Of a parametrized module (``torch.nn.utils.parametrizations``) the tensors behind its weight are interpolated.
    Raises ValueError for an anchor that does not fit or shares memory with the model, a model that cannot be copied, a
    pattern that matches nothing, an alpha that is not finite or has other names, an unknown word for buffers, or
    batches missing or given in vain; TypeError for an anchor of another kind.
    """
    ratios = alpha if isinstance(alpha, Mapping) else {"alpha": alpha}
    if bad := {name: ratio for name, ratio in ratios.items() if not math.isfinite(ratio)}:
        raise ValueError(f"alpha must be a finite number, got {alpha if not isinstance(alpha, Mapping) else bad}")
    if buffers is not None:
        check_buffers(buffers)
    if (batches is not None) != (buffers == "reestimate"):
        raise ValueError(f"buffers='reestimate' takes batches, other words take none; got buffers={buffers!r}")
    exclude = as_patterns(exclude, "exclude")
    if isinstance(anchor, str):
        raise TypeError(f"interpolate takes a module or a state dict as anchor, got {anchor!r}")
    given = anchor_tensors(anchor, model)
    exclude = tuple(require_match(pattern, [*aliases(model), *given], "exclude") for pattern in exclude)
    tied = {id(p) for name, p in aliases(model).items() if matches(name, exclude)}
    names = [canonical(name) for name, p in unwrap(model).named_parameters() if id(p) not in tied]
    start = match_anchor(model, anchor, names, exclude)
    refuse_shared(model, start)
    if not isinstance(alpha, Mapping):
        ratios = dict.fromkeys(names, alpha)
    elif differing := ratios.keys() ^ set(names):
        raise ValueError(f"alpha must name each parameter with an anchor and no other; differing: {_some(differing)}")
    result = copy_of(model)
    targets = dict(aliases(result).items())
    for name, tensor in start.items():
        targets[name].lerp_(tensor.to(targets[name]), 1.0 - ratios[name])
    if buffers in (None, "move"):
        following = FollowingBuffers(result, given, names, exclude)
        if buffers == "move":
            following.require()
        following.move_(torch.tensor([ratios[n] for n in names]) if isinstance(alpha, Mapping) else alpha)
    elif batches is not None:
        reestimate(result, batches)
    return result


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")

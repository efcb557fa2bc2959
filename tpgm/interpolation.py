"""WiSE-FT: one ratio for all weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm.anchor import Model, anchor_tensors, copy_of, match_anchor, refuse_shared
from tpgm.buffers import Batches, Buffers, FollowingBuffers, reestimate
from tpgm.names import aliases, names_left, require_match


@check.keywords
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
    Raises ValueError for an anchor that does not fit or shares memory with the model, NaN or infinite weights, a model
    that cannot be copied, a pattern that matches nothing, an alpha that is not finite or has other names, an unknown
    word for buffers, or batches missing or given in vain; TypeError for an anchor or model of another kind.
    """
    check.module("model", model)
    each = check.mapping("alpha", alpha, "from names to ratios") if isinstance(alpha, Mapping) else None
    ratios = {name: check.number(f"alpha of {name}", ratio) for name, ratio in (each or {}).items()}
    common = check.number("alpha", alpha) if each is None else None
    if buffers is not None:
        check.choice("buffers", buffers, get_args(Buffers))
    if (batches is not None) != (buffers == "reestimate"):
        what = "no batches: give an iterable of them" if batches is None else "batches: leave them out"
        raise ValueError(f"buffers='reestimate' takes batches, other words none; got buffers={buffers!r} and {what}")
    exclude = check.sequence("exclude", exclude)
    given = anchor_tensors(anchor, model)
    exclude = tuple(require_match(pattern, [*aliases(model), *given], "exclude") for pattern in exclude)
    names = names_left(model, exclude)
    start = match_anchor(model, anchor, names, exclude)
    refuse_shared(model, start)
    if common is not None:
        ratios = dict.fromkeys(names, common)
    elif differing := sorted(ratios.keys() ^ set(names)):
        more = f" and {len(differing) - 3} more" * (len(differing) > 3)
        raise ValueError(
            f"alpha must name each parameter with an anchor and no other; differing: {', '.join(differing[:3])}{more}"
        )
    own = aliases(model)
    check.finite({f"the model's {name}": own[name] for name in start}, "load weights from before the training diverged")
    result = copy_of(model)
    targets = dict(aliases(result).items())
    for name, tensor in start.items():
        targets[name].lerp_(tensor.to(targets[name]), 1.0 - ratios[name])
    if buffers in (None, "move"):
        following = FollowingBuffers(result, given, names, exclude)
        if buffers == "move":
            following.require()
        following.move_(torch.tensor([ratios[name] for name in names]) if common is None else common)
    elif batches is not None:
        reestimate(result, batches)
    return result

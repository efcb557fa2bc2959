"""Anchors: the pre-trained weights a constraint refers to, checked against the model before anything runs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm._engine.layout import place
from tpgm._engine.sharded import local
from tpgm.names import aliases, canonical, matches, unwrap

Model = TypeVar("Model", bound=nn.Module)
Anchor = nn.Module | Mapping[str, Tensor] | Literal["zero"]


def _listing(lines: Sequence[str], limit: int = 5) -> str:
    more = f"\n  … and {len(lines) - limit} more" if len(lines) > limit else ""
    return "".join(f"\n  {line}" for line in lines[:limit]) + more


def zero(like: Tensor) -> Tensor:
    """An anchor at 0 in the shape, dtype and device of `like` that takes the memory of one number."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(like.shape)


def anchor_tensors(anchor: nn.Module | Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """An anchor's tensors by canonical name; the ``module.`` prefix of a data-parallel checkpoint is dropped unless
    `model` has such names itself."""
    if isinstance(anchor, nn.Module):
        anchor = unwrap(anchor).state_dict()
    check.instance("anchor", anchor, Mapping, "a module or a state dict (of a file: torch.load)")
    check.mapping("anchor", anchor, "from names to tensors")
    refuse_checkpoint(anchor)
    named = {canonical(name): tensor for name, tensor in anchor.items()}
    own = model is not None and any(name.startswith("module.") for name in aliases(model))
    if named and not own and all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): tensor for name, tensor in named.items()}
    return named


def refuse_checkpoint(anchor: Mapping[str, Any]) -> None:
    """Raise ValueError for a mapping that holds state dicts besides other things, naming them."""
    inner = [n for n, v in anchor.items() if isinstance(v, Mapping) and any(isinstance(t, Tensor) for t in v.values())]
    if inner:
        raise ValueError(
            f"the anchor is a whole checkpoint, its tensors stand below {' and '.join(map(repr, inner[:5]))}: give one "
            f"of these, such as checkpoint[{inner[0]!r}]"
        )


def outside_inference(what: str) -> None:
    """Raise RuntimeError inside ``torch.inference_mode``, where nothing can be made that takes part in training."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"{what} inside torch.inference_mode() could never be used in training: make it outside")


def copy_of(model: Model) -> Model:
    """A deep copy. Raises ValueError naming tensors that are computed from parameters, which torch does not copy."""
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        computed = [
            f"{name}.{key}".lstrip(".")
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, Tensor) and not value.is_leaf
        ]
        if not computed:
            raise
        raise ValueError(
            f"the model cannot be copied: {', '.join(computed[:5])} is computed from other tensors. Make it a plain "
            "parameter (after pruning torch.nn.utils.prune.remove, else remove_weight_norm, remove_spectral_norm), or "
            "take torch.nn.utils.parametrizations; an activation that the model keeps must be detached"
        ) from error


def match_anchor(
    model: nn.Module, anchor: nn.Module | Mapping[str, Tensor], names: Iterable[str], exclude: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The anchor's tensors for the parameters `names`, as they are (neither copied nor converted).

    names: canonical parameter names of `model`. A tied parameter may stand in the anchor under any of its names.
    Raises ValueError listing tensors that are missing, that the model does not have (unless a pattern of `exclude`
    fits them), that differ in shape, or that are not finite floating-point numbers.
    """
    given, parameters = anchor_tensors(anchor, model), aliases(model)
    whose = "model" if anchor is model else "anchor"
    known = set(parameters) | {canonical(name) for name in unwrap(model).state_dict()}
    extra = sorted(name for name in given if name not in known and not matches(name, exclude))
    found: dict[str, Tensor] = {}
    missing, misfits, unusable = [], [], []
    for name in names:
        same = [alias for alias, p in parameters.items() if p is parameters[name] and alias in given]
        if not same:
            missing.append(name)
            continue
        tensor = found[name] = given[same[0]]
        if not isinstance(tensor, Tensor):
            unusable.append(f"{name}: must be a tensor, the anchor has a {type(tensor).__name__}")
        elif tensor.shape != parameters[name].shape:
            misfits.append(f"{name}: anchor {tuple(tensor.shape)}, model {tuple(parameters[name].shape)}")
        elif tensor.is_meta or parameters[name].is_meta:
            unusable.append(f"{name}: on the device meta, without numbers; load the weights first")
        elif not tensor.is_floating_point():
            unusable.append(f"{name}: {whose} has dtype {tensor.dtype}, must be floating point; convert or exclude it")
        elif not parameters[name].is_floating_point():
            unusable.append(f"{name}: model has dtype {parameters[name].dtype}, must be floating point; exclude it")
        elif what := check.broken(tensor):
            unusable.append(f"{name}: {whose} {what}; load the pre-trained weights anew, or give others as anchor")
    problems = [
        f"{what}:{_listing(lines)}"
        for what, lines in (
            ("the anchor lacks tensors" if given else "the anchor is empty and lacks tensors", missing),
            ("the anchor has tensors the model does not have", extra),
            ("anchor tensors do not fit the model", misfits),
            (f"tensors of the {whose} cannot be used", unusable),
        )
        if lines
    ]
    if problems:
        if missing or extra or misfits:
            what = "Name parameters without a pre-trained counterpart (a new head) in exclude, e.g. exclude=['head.*']."
            problems = ["anchor does not fit the model", *problems, what]
        raise ValueError("\n".join(problems))
    return found


def check_floating(parameters: Mapping[str, Tensor]) -> None:
    """Raise ValueError, with names, for parameters that are not real floating-point numbers."""
    if bad := [f"{name}: {p.dtype}" for name, p in parameters.items() if not p.is_floating_point()]:
        raise ValueError(f"parameters must be of a floating-point type; name others in exclude:{_listing(bad)}")


def refuse_shared(model: nn.Module, anchor: Mapping[str, Tensor]) -> None:
    """Raise ValueError, with names, if tensors of the anchor lie in memory of the model: training moves both."""
    own = [*unwrap(model).parameters(), *unwrap(model).buffers()]
    with torch.no_grad():
        places = {place(local(tensor)) for tensor in own} - {None}
        shared = [name for name, tensor in anchor.items() if place(local(tensor)) in places]
    if shared:
        raise ValueError(
            f"the anchor shares memory with the model and moves along with it:{_listing(shared)}\n"
            "Give a copy made before training: copy.deepcopy(model), or {name: t.clone() for name, t in "
            "model.state_dict().items()}; `tpgm.TPGM` makes one itself without anchor=."
        )

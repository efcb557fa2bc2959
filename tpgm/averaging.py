"""Averages of several fine-tuned models: the uniform soup and Model Stock."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm.anchor import Model, anchor_tensors, match_anchor
from tpgm.interpolation import interpolate
from tpgm.names import aliases, canonical, matches, require_match, unwrap


@torch.no_grad()
def soup(models: Sequence[Model]) -> Model:
    """The uniform soup (Wortsman et al., ICML 2022, arXiv 2203.05482): a model with the mean of the models' tensors.

    models: two or more of one architecture, fine-tuned from one start; they stay untouched. Floating-point buffers are
    averaged as weights are, others are the first model's. Raises ValueError for fewer than two models, or models whose
    tensors differ in name or shape.
    """
    states = [unwrap(model).state_dict() for model in models]
    if len(states) < 2:
        raise ValueError(f"models must hold two models or more, got {len(states)}")
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    for number, other in enumerate(shapes):
        if differing := sorted(name for name in other.keys() | shapes[0] if other.get(name) != shapes[0].get(name)):
            raise ValueError(f"models[{number}] and models[0] differ in {', '.join(differing[:3])}: average one kind")
    result = copy.deepcopy(models[0])
    for name, tensor in unwrap(result).state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.stack([state[name].to(tensor.device, torch.float64) for state in states]).mean(dim=0))
    return result


@torch.no_grad()
def model_stock(
    models: Sequence[Model], anchor: nn.Module | Mapping[str, Tensor], *, exclude: Sequence[str] = ()
) -> tuple[Model, dict[str, float]]:
    """Model Stock (Jang et al., ECCV 2024, arXiv 2403.19522): the soup, drawn back by a ratio that needs no data.

    For k models with displacements from the anchor whose mean cosine in a tensor is c, the ratio of that tensor is
    ``k c / (1 + (k − 1) c)``; a negative c counts as 0. models: as for `soup`. anchor, exclude: as for
    `tpgm.interpolate`. Returns the model, and the ratios by parameter name. A displacement of 0 has cosine 0 with every
    other. Raises as both.
    """
    mixed = soup(models)
    known = [*aliases(mixed), *anchor_tensors(anchor, mixed)]
    exclude = [require_match(pattern, known, "exclude") for pattern in check.sequence("exclude", exclude)]
    names = [n for n in (canonical(n) for n, _ in unwrap(mixed).named_parameters()) if not matches(n, exclude)]
    start = match_anchor(mixed, anchor, names, exclude)
    k = len(models)
    each = [aliases(model) for model in models]
    ratios = {}
    for name in names:
        origin = start[name].double()
        moved = torch.stack([(own[name].to(origin.device, torch.float64) - origin).flatten() for own in each])
        unit = torch.nn.functional.normalize(moved, dim=1, eps=0.0).nan_to_num()
        cosine = ((unit.sum(dim=0).square().sum() - unit.square().sum()) / (k * (k - 1))).clamp(min=0).item()
        ratios[name] = k * cosine / (1 + (k - 1) * cosine)
    return interpolate(mixed, anchor, ratios, exclude=exclude), ratios

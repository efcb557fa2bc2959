"""Averages of several fine-tuned models: the uniform soup and Model Stock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm.anchor import Model, anchor_tensors, copy_of, match_anchor, refuse_shared
from tpgm.interpolation import interpolate
from tpgm.names import aliases, names_left, require_match, unwrap


@check.keywords
@torch.no_grad()
def soup(models: Sequence[Model]) -> Model:
    """The uniform soup (Wortsman et al., ICML 2022, arXiv 2203.05482): a model with the mean of the models' tensors.

    models: two or more of one architecture, fine-tuned from one start; they stay untouched. Floating-point buffers are
    averaged as weights are, others are the first model's. Raises ValueError for fewer than two models, models whose
    tensors differ in name or shape, weights that are complex, NaN or infinite, or a model that cannot be copied;
    TypeError for anything but models in a sequence.
    """
    models = _models(models)
    for number, model in enumerate(models):
        if odd := [name for name, p in model.named_parameters() if not p.is_floating_point()]:
            raise ValueError(f"models[{number}] has parameters that are no real floating-point numbers: {odd[0]}")
    states = [{n: t for n, t in unwrap(m).state_dict().items() if isinstance(t, Tensor)} for m in models]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    for number, other in enumerate(shapes):
        if differing := sorted(name for name in other.keys() | shapes[0] if other.get(name) != shapes[0].get(name)):
            raise ValueError(f"models[{number}] and models[0] differ in {', '.join(differing[:3])}: average one kind")
    for number, state in enumerate(states):
        numbers = {f"{name} of models[{number}]": t for name, t in state.items() if t.is_floating_point()}
        check.finite(numbers, "leave out what has diverged, and load the weights first")
    result = copy_of(models[0])
    for name, tensor in unwrap(result).state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor.copy_(torch.stack([state[name].to(tensor.device, torch.float64) for state in states]).mean(dim=0))
    return result


def _models(models: Iterable[Model]) -> list[Model]:
    many = isinstance(models, Iterable) and not isinstance(models, nn.Module | Mapping)
    found = list(check.instance("models", models if many else None, Iterable, "a sequence of models, not one alone"))
    for number, model in enumerate(found):
        check.module(f"models[{number}]", model)
    if len(found) < 2:
        raise ValueError(f"models must hold two models or more, got {len(found)}")
    return found


@check.keywords
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
    models = _models(models)
    mixed = soup(models)
    known = [*aliases(mixed), *anchor_tensors(anchor, mixed)]
    exclude = [require_match(pattern, known, "exclude") for pattern in check.sequence("exclude", exclude)]
    names = names_left(mixed, exclude)
    start = match_anchor(mixed, anchor, names, exclude)
    for model in models:  # the soup is a copy, of which the anchor cannot be a part
        refuse_shared(model, start)
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

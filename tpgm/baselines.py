"""What TPGM is compared with and needs more than a setting of the training loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tpgm.names import NORMALIZATIONS, aliases, canonical, unwrap
from tpgm.projection import Norm, project, row_norms


def l2_sp(model: nn.Module, anchor: Mapping[str, Tensor], strength: float, head_strength: float) -> Tensor:
    """L2-SP (arXiv 1802.01483): ``a/2 ‖θ − θ⁰‖² + b/2 ‖θ_new‖²``, a scalar, over the parameters being trained; new are
    those without an anchor."""
    terms = [
        0.5 * strength * (p - anchor[name]).square().sum() if name in anchor else 0.5 * head_strength * p.square().sum()
        for name, p in ((canonical(name), p) for name, p in unwrap(model).named_parameters())
        if p.requires_grad
    ]
    return torch.stack(terms).sum()


def mars_penalty(model: nn.Module, anchor: Mapping[str, Tensor], strength: float, norm: Norm = "mars") -> Tensor:
    """Distance penalty (arXiv 2002.08253): ``λ Σ_l ‖θ_l − θ⁰_l‖``, a scalar, the norm of a tensor being its largest
    row norm; over the parameters that have an anchor."""
    parameters = aliases(model)
    return (
        strength * torch.stack([row_norms(parameters[name] - a, norm).max() for name, a in _own(model, anchor)]).sum()
    )


@torch.no_grad()
def project_fixed(model: nn.Module, anchor: Mapping[str, Tensor], radius: float, norm: Norm = "mars") -> None:
    """MARS-SP (arXiv 2002.08253): project every parameter that has an anchor, in place, with one fixed radius."""
    parameters = aliases(model)
    for name, start in _own(model, anchor):
        parameters[name].copy_(project(parameters[name], start, radius, norm))


def norm_and_bias_names(model: nn.Module) -> set[str]:
    """Names of all biases and of the weights of normalization layers (BitFit, arXiv 2106.10199)."""
    names = {name for name in aliases(model) if name.endswith("bias")}
    for prefix, module in model.named_modules():
        if isinstance(module, NORMALIZATIONS):
            names |= {canonical(f"{prefix}.{name}") for name, _ in module.named_parameters(recurse=False)}
    return names


def _own(model: nn.Module, anchor: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    parameters = aliases(model)
    return [(name, tensor) for name, tensor in anchor.items() if name in parameters]

"""Figures of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import nn

from tpgm.baselines import NORMALIZATIONS
from tpgm.names import canonical, unwrap
from tpgm.plots.style import CYCLE, book_style


def kinds(model: nn.Module) -> dict[str, str]:
    """Each parameter's kind by name: "attention", "normalization", "convolution", "linear" or "other"."""
    found: dict[str, str] = {}
    for prefix, module in unwrap(model).named_modules():
        if isinstance(module, NORMALIZATIONS):
            kind = "normalization"
        elif any("attn" in part or "attention" in part for part in prefix.split(".")):
            kind = "attention"
        elif isinstance(module, nn.modules.conv._ConvNd):
            kind = "convolution"
        else:
            kind = "linear" if isinstance(module, nn.Linear) else "other"
        found |= {canonical(f"{prefix}.{name}".lstrip(".")): kind for name, _ in module.named_parameters(recurse=False)}
    return found


def ratios_by_depth(ratios: Mapping[str, float], model: nn.Module, title: str = "Learned ratios by depth") -> Figure:
    """Mean ratio of every constrained tensor (0: at its anchor, 1: free) in the order of the model's parameters."""
    with book_style():
        figure, axes = plt.subplots()
        names = list(ratios)
        of = kinds(model)
        for kind, color, marker in zip(dict.fromkeys(of[name] for name in names), CYCLE, "osD^v", strict=False):
            index = [i for i, name in enumerate(names) if of[name] == kind]
            axes.plot(index, [ratios[names[i]] for i in index], marker, color=color, label=kind, markersize=5)
        axes.set(xlabel="parameter tensor, from input to output", ylabel="ratio", ylim=(-0.03, 1.03), title=title)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=5, columnspacing=1.2, handletextpad=0.2)
        plt.close(figure)
    return figure

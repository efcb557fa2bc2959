"""One ratio for all weights, chosen on ID validation data: WiSE-FT (arXiv 2109.01903) without a number to guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tpgm.buffers import Buffers
from tpgm.interpolation import interpolate
from tpgm.methods.base import Context, Method, Stage, other_default, register, setting
from tpgm.names import names_left, unwrap

RATIO = "ratio"  # the stage of its own
Rule = Literal["best", "one-se"]


@dataclass
class Losses:
    """Validation losses, one tensor (images,) for each ratio looked at so far; chosen: the ratio taken at the end."""

    of: list[Tensor] = field(default_factory=list)
    chosen: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"of": self.of}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.of = list(state["of"])


def choose(losses: Tensor, rule: Rule) -> int:
    """Which row of `losses`, (ratios, images), is taken: "best" or "one-se", see `OneRatio`.

    Raises FloatingPointError if no ratio has a finite mean loss.
    """
    means = losses.mean(dim=1).nan_to_num(nan=torch.inf, posinf=torch.inf)
    best = int(means.argmin())
    if not bool(means[best].isfinite()):
        raise FloatingPointError("the validation loss is not finite at any ratio: lower lr")
    if rule == "best" or len(losses[0]) == 1:  # one image has no standard error
        return best
    differences = losses[: best + 1] - losses[best]
    error = differences.std(dim=1) / len(losses[0]) ** 0.5
    return int((differences.mean(dim=1) <= error).nonzero()[0])


@register
@dataclass(frozen=True, kw_only=True)
class OneRatio(Method):
    """After fine-tuning all weights go back to the anchor by one ratio, chosen on ID validation data.

    With the rule "one-se" they go back as far as the mean loss stays within one standard error of the lowest: to the
    nearest model to the anchor that validation data cannot tell from the best. The error is that of the paired
    differences, image by image. With "best" the ratio has the lowest loss.

    It is what `tpgm.finetune` does when no method is named: of the candidates for a default it lost least out of
    distribution over three regimes (book, "Every method in every regime"). The learning rate is no part of that.
    """

    name: ClassVar[str] = "one-ratio"
    about: ClassVar[str] = "one ratio for all weights after fine-tuning, chosen on validation data (the default)"

    head_epochs: int = other_default("head_epochs", 2)
    batchnorm: Literal["eval", "train"] = other_default("batchnorm", "train")
    points: int = setting(21, "ratios looked at, evenly from 0 to 1", low=2)
    rule: Rule = setting(
        "one-se",
        "one-se: smallest ratio within one standard error of the lowest validation loss; best: lowest",
        choices=get_args(Rule),
    )
    buffers: Buffers = setting(
        "move",
        "BatchNorm's running statistics: move with the weights (where the anchor has them), keep, or reestimate on the "
        "training images",
        choices=get_args(Buffers),
    )

    def stages(self, epoch: int) -> list[Stage]:
        return [*super().stages(epoch), Stage(RATIO, self.points)]

    def enter(self, context: Context, stage: str) -> Losses | None:
        return Losses() if stage == RATIO else None

    @torch.no_grad()
    def own_step(self, context: Context, stage: str, number: int) -> None:
        net = self._between(context, number / (self.points - 1)).eval()
        losses = []
        for x, y in context.validation():
            with context.autocast():
                losses.append(cross_entropy(net(x), y, reduction="none").double())
        context.learner.of.append(torch.cat(losses))

    def leave(self, context: Context, stage: str) -> None:
        chosen = choose(torch.stack(context.learner.of), self.rule) / (self.points - 1)
        context.learner.chosen = chosen
        unwrap(context.net).load_state_dict(self._between(context, chosen).state_dict())

    def learned(self, context: Context) -> tuple[dict[str, float], dict[str, float]]:
        if not isinstance(context.learner, Losses) or context.learner.chosen is None:
            return {}, {}
        return dict.fromkeys(names_left(context.net, context.exclude), context.learner.chosen), {}

    def _between(self, context: Context, alpha: float) -> nn.Module:
        return interpolate(
            unwrap(context.net),
            context.anchor,
            alpha,
            exclude=context.exclude,
            buffers=None if self.buffers == "move" else self.buffers,
            batches=context.inputs() if self.buffers == "reestimate" else None,
        )


@register
@dataclass(frozen=True, kw_only=True)
class ProbeAnchored(OneRatio):
    """`OneRatio` whose anchor is the linear-probed model: head, backbone and running statistics go back together."""

    name: ClassVar[str] = "probe-anchored"
    about: ClassVar[str] = "the head first and into the anchor, then all weights, then one ratio for the whole model"

    anchor_head: bool = other_default("anchor_head", True)

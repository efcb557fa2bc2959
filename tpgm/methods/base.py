"""What a method is: a dataclass of settings, with hooks in the order of a run.

A method states its settings, with default, range and help, and what it changes in the training loop. One file holds all
of it; `register` makes it known to `tpgm.finetune` and to the command line, from inside the package or from outside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm.check import hint
from tpgm.names import aliases, names_left

Settings = dict[str, Any]
DEFAULT = "one-ratio"  # the method that is taken where none is named
MOMENTUM = 0.9


class Learner(Protocol):
    """What a method learns besides the weights, a `tpgm.TPGM` for instance; checkpoints hold its state."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Stage(NamedTuple):
    """A part of a run.

    name: "head" and "weights" train these parameters; any other name belongs to the method's own `Method.own_step`.
    steps: how many. shared: whether other methods with the same common settings compute the same here.
    """

    name: str
    steps: int
    shared: bool = False


@dataclass
class Context:
    """What hooks see of a run.

    net: the network; a DistributedDataParallel wrapper if there are several processes. anchor: the pre-trained tensors
    by parameter name, on the network's device. exclude: patterns of parameters without an anchor (a new head). head:
    names of the classifier's parameters. steps: of the present stage. batch: ``batch(part, size, number)`` gives
    (images, labels) on the device, part being "val" or "train"; a number always gives the same batch. inputs: one pass
    over the training images, in batches of `batch_size`, as the network takes them at inference. validation: one pass
    over the ID validation data, (images, labels), the whole of it in each of several processes. autocast: the context
    in which the run computes its losses. learner: what `Method.enter` returned in the present stage. optimizer:
    of the present stage, None in a stage of the method's own.
    """

    net: nn.Module
    anchor: Mapping[str, Tensor]
    exclude: tuple[str, ...]
    head: frozenset[str]
    batch: Callable[[str, int, int], tuple[Tensor, Tensor]]
    inputs: Callable[[], Iterator[Tensor]]
    validation: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    autocast: Callable[[], AbstractContextManager[Any]]
    steps: int = 0
    learner: Any = None
    optimizer: torch.optim.Optimizer | None = None


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] = (),
    low: float = 0.0,
    high: float = math.inf,
    below: bool = False,
) -> Any:
    """A field of a `Method`: its default, the command line's help, and which values it may have.

    choices: the only valid values. low, high: the range of a number, both ends included; with `below`, high is not.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "range": (low, high), "below": below})


def other_default(name: str, default: Any) -> Any:
    """The setting `name` of every method, with another default."""
    (common,) = (f for f in fields(Method) if f.name == name)
    return field(default=default, metadata=common.metadata)


@dataclass(frozen=True, kw_only=True)
class Method:
    """Settings of every method, and hooks that leave ordinary fine-tuning as it is.

    Subclasses are frozen dataclasses too; they add settings by `setting` and override hooks. The hooks stand here in
    the order in which a run calls them. Raises ValueError, naming what is valid, for a value that cannot be.
    """

    name: ClassVar[str]
    about: ClassVar[str]

    epochs: int = setting(5, "passes over the training data (after head_epochs)", low=1)
    batch_size: int = setting(64, "training images a step, over all processes", low=1)
    optimizer: Literal["adamw", "sgd"] = setting("adamw", "adamw or sgd (momentum 0.9)", choices=("adamw", "sgd"))
    lr: float = setting(3e-4, "highest learning rate")
    weight_decay: float = setting(0.0, "decoupled for adamw; part of the gradient for sgd")
    warmup: float = setting(
        0.1, "share of the steps over which the learning rate rises; then it falls as a cosine", high=1
    )
    head_epochs: int = setting(0, "epochs in which the new head alone is trained first (linear probing)")
    head_lr: float = setting(3e-3, "learning rate of those epochs")
    anchor_head: bool = setting(
        False, "the head joins the anchor as head_epochs leave it: then the whole model has a way back"
    )
    augment: bool = setting(True, "mirror and shift training images")
    batchnorm: Literal["eval", "train"] = setting(
        "eval",
        "eval: keep the pre-trained running statistics; train: update them (a last batch of one image is left out)",
        choices=("eval", "train"),
    )
    patience: int = setting(
        0, "stop after so many epochs without a better ID validation accuracy, keep the best; 0: never"
    )
    precision: Literal["no", "bf16"] = setting("no", "no (float32) or bf16 (autocast)", choices=("no", "bf16"))
    channels_last: bool = setting(False, "keep images and convolutions channels last: faster for convolutional nets")
    workers: int = setting(2, "processes that read image files")
    seed: int = setting(0, "of the new head, the order of the data, augmentation and dropout")

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        if self.anchor_head and not self.head_epochs:
            raise ValueError("anchor_head takes the head that head_epochs have trained: set head_epochs to 1 or more")
        self.check()

    # --- the hooks, in the order of a run

    def check(self) -> None:
        """Raise ValueError for settings that do not go together; each for itself has been checked."""

    def stages(self, epoch: int) -> list[Stage]:
        """The run's parts; epoch: training steps in a pass over the data. Those with 0 steps are left out."""
        return [
            Stage("head", self.head_epochs * epoch, shared=True),
            Stage("weights", self.epochs * epoch, shared=self._trains_like_vanilla()),
        ]

    def trainable(self, context: Context) -> set[str]:
        """Names of the parameters that the stage "weights" trains. If only the head, the network is in eval mode."""
        return set(aliases(context.net))

    def make_optimizer(self, context: Context, parameters: Mapping[str, nn.Parameter], lr: float) -> Any:
        """The optimizer of the stage "weights"; parameters: by name, a tied one once."""
        return ordinary_optimizer(self, parameters, lr)

    def enter(self, context: Context, stage: str) -> Learner | None:
        """At the start of the stage "weights" and of own stages: what learns besides the weights, if anything does."""
        return None

    def extra_loss(self, context: Context) -> Tensor | None:
        """A term of the training loss in the stage "weights", a scalar."""
        return None

    def after_step(self, context: Context, step: int) -> None:
        """After step number `step`, from 0, of the optimizer in the stage "weights"."""

    def own_step(self, context: Context, stage: str, number: int) -> None:
        """Step `number`, from 0, of a stage of the method's own."""
        raise NotImplementedError(f"{self.name} has the stage {stage!r} but no own_step")

    def leave(self, context: Context, stage: str) -> None:
        """After the last step of an own stage."""

    def learned(self, context: Context) -> tuple[dict[str, float], dict[str, float]]:
        """Ratios and radii by parameter name at the end of a stage; empty where none are learned."""
        learner = context.learner
        return (learner.ratios(), dict(learner.radii)) if hasattr(learner, "radii") else ({}, {})

    def further(self, context: Context) -> Iterator[tuple[float, nn.Module]]:
        """Further networks to be tested at the end, each under a number."""
        return iter(())

    def finish(self, context: Context) -> nn.Module:
        """The network that the run returns; context.net has no wrapper here."""
        return context.net

    # --- pieces

    @property
    def settings(self) -> Settings:
        """Every setting by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _trains_like_vanilla(self) -> bool:
        """Whether the stage "weights" depends on common settings alone: none of the hooks that act in it differs."""
        acting = ("trainable", "make_optimizer", "extra_loss", "after_step")
        return all(getattr(type(self), hook) is getattr(Method, hook) for hook in acting)


def ordinary_optimizer(method: Method, parameters: Mapping[str, nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW, as the method's settings say."""
    if method.optimizer == "sgd":
        return torch.optim.SGD(
            parameters.values(), lr=lr, weight_decay=method.weight_decay, momentum=MOMENTUM, nesterov=True
        )
    return torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=method.weight_decay)


def refuse_schedule_free(optimizer: Any) -> None:
    """Raise ValueError for an optimizer that holds other weights in train than in eval mode (arXiv 2405.15682).

    Told by its methods ``train`` and ``eval`` and the ``train_mode`` in its groups, as the package schedulefree has.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # inside the wrapper of accelerate or Lightning
    modes = callable(getattr(inner, "train", None)) and callable(getattr(inner, "eval", None))
    if modes and any("train_mode" in group for group in getattr(inner, "param_groups", ())):
        raise ValueError(
            f"{type(inner).__name__} trains other weights than it evaluates; a projection after each step leaves the "
            "evaluated model outside its radii. Train without projections, call optimizer.eval(), then update the "
            "radii and project_() once at the end; or take another optimizer"
        )


def anchor_groups(context: Context, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer of ``tpgm.optim``: those with an anchor, and a new head without."""
    left = set(names_left(context.net, context.exclude))
    kept = [(name, p) for name, p in parameters.items() if name in left]
    new = [(name, p) for name, p in parameters.items() if name not in left]
    groups: list[dict[str, Any]] = [{"params": kept, "anchor": context.anchor}]
    return [*groups, {"params": new, "anchor": False}] if new else groups


def _checked(f: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the type of the setting's default. Raises ValueError, TypeError for what is no sequence of texts."""
    name, default, choices = f.name, f.default, f.metadata["choices"]
    low, high = f.metadata["range"]
    if isinstance(default, bool):
        return check.flag(name, value)
    if isinstance(default, tuple):
        return check.sequence(name, value)
    if isinstance(default, str):
        return check.choice(name, value, choices) if choices else check.instance(name, value, str, "a text")
    whole = isinstance(default, int)
    found = check.number(name, value, low, high, whole=whole, below=f.metadata["below"])
    return found if whole else float(found)


def _range(f: dataclasses.Field[Any]) -> str:
    low, high = f.metadata["range"]
    return check.range_of(low, high, below=f.metadata["below"]) or "finite"


# --- the registry

METHODS: dict[str, type[Method]] = {}
Kind = TypeVar("Kind", bound=type[Method])


def register(method: Kind) -> Kind:
    """Class decorator: make a method known under its name, and settings of its own without help or range an error.

    Raises ValueError for a name that another method has, TypeError for a class without name, about or `setting` fields.
    """
    for what in ("name", "about"):
        if not isinstance(getattr(method, what, None), str):
            raise TypeError(f"{method.__name__} needs {what}: ClassVar[str] = …")
    known = METHODS.get(method.name)
    if known is not None and (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"there is a method {method.name!r} already, {known.__module__}.{known.__qualname__}")
    for f in fields(method):
        if "help" not in f.metadata:
            raise TypeError(f"{method.__name__}.{f.name}: declare it by tpgm.methods.setting(default, help)")
    METHODS[method.name] = method
    return method


def known(name: str) -> type[Method]:
    """The method of this name. Raises ValueError naming those there are."""
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"unknown method {check.shown(name)}; {hint(name, METHODS)}Methods: {', '.join(METHODS)}")
    return METHODS[name]


def options(method: str) -> dict[str, tuple[Any, str]]:
    """Every setting of a method: name to (default, help). Raises ValueError for an unknown method."""
    return {f.name: (f.default, f.metadata["help"]) for f in fields(known(method))}


def valid_values(method: str) -> dict[str, str]:
    """Which values each setting of a method may have, in words: its choices, or its type and range."""
    found = {}
    for f in fields(known(method)):
        kind: type = type(f.default)
        found[f.name] = " or ".join(map(str, f.metadata["choices"])) or kind.__name__
        if kind in (int, float):
            found[f.name] += f", {_range(f)}"
    return found


def make(method: str | Method, given: Mapping[str, Any]) -> Method:
    """The method with these settings, the others at their defaults, or at those of `method` if it is made already.

    Raises ValueError naming the valid ones for a setting the method does not have or a value that cannot be, TypeError
    for anything but a name or a `Method`.
    """
    if not isinstance(method, str | Method):
        raise TypeError(f"method must be a name or a tpgm.methods.Method, got {method!r:.80}")
    kind = known(method) if isinstance(method, str) else type(method)
    valid = [f.name for f in fields(kind)]
    for name in check.mapping("settings", given, "from their names to values"):
        if name not in valid:
            near = hint(name, valid)
            raise ValueError(f"{kind.name} has no setting {name!r}; {near}Settings: {', '.join(valid)}")
    return kind(**given) if isinstance(method, str) else dataclasses.replace(method, **given)


def resolve(method: str, given: Mapping[str, Any]) -> Settings:
    """All settings of a method, the given ones checked, the others at their defaults. Raises as `make` does."""
    return make(method, given).settings


def parse(method: str, name: str, text: str) -> Any:
    """A setting's value from the command line's text. Raises ValueError if it does not read as the right type."""
    if name not in (valid := options(method)):
        make(method, {name: text})  # which tells the names there are
    default = valid[name][0]
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return text.lower() == "true"
    if isinstance(default, tuple):
        return tuple(part for part in text.split(",") if part)
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            what = "a whole number" if isinstance(default, int) else "a number"
            raise ValueError(f"{name} must be {what}, got {text!r}") from None
    return text

"""What the optimizers share: an anchor for each parameter, held in the optimizer's state, and the steps of Adam."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from tpgm import check
from tpgm._engine import sharded
from tpgm._engine.layout import check_parameter, dense, fits, refuse_overlap, same_block, share_memory
from tpgm._engine.sharded import Shards, is_sharded, local, part
from tpgm.anchor import outside_inference, refuse_checkpoint, zero
from tpgm.check import hint
from tpgm.projection import Norm

Anchors = Sequence[Tensor] | Mapping[str, Tensor] | Literal["zero", False] | None
Group = dict[str, Any]
State = dict[str, Tensor]

# options of torch's optimizers whose default, off, is all there is here; and those of the authors' codes
_OFF = ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "dampening")
_INSTEAD = {
    "amsgrad": "the second moment is AdamW's; leave it out",
    "maximize": "only minimising is supported; negate the loss",
    "foreach": "all tensors are stepped at once in any case; leave it out",
    "fused": "the steps are torch's fused ones in any case; leave it out",
    "capturable": "a step cannot be part of a CUDA graph; capture the forward and backward pass alone",
    "differentiable": "autograd does not record a step; leave it out",
    "dampening": "it is always 0; leave it out",
    "pre": "the pre-trained tensors are given as 'anchor' (pre=None of adapters is anchor='zero'); and λ, which the "
    "authors' AdamSPD calls weight_decay, is strength",
    "name": "names come with the parameters: 'params' takes (name, parameter) pairs; a label must be a str",
    "k": "FTP's factor of positive slopes is called kappa",
    "exclude_set": "what is left unconstrained goes into a group with anchor=False",
    "use_lora": "for adapters give anchor='zero'",
}


class AnchoredOptimizer(Optimizer):
    """A torch optimizer in which every parameter has an anchor θ⁰; what its subclasses have in common.

    params: as for any torch optimizer: parameters, (name, parameter) pairs, or groups of them. anchor, for all groups,
    or in a group for that group: None, a copy of the parameters as they are when given to the optimizer; a sequence of
    tensors in the order of the parameters; a mapping from parameter names, for named parameters (a state dict will do:
    entries of no parameter are ignored); "zero", the origin, which keeps no copy (factors of an adapter); False, no
    constraint (a new head).

    Parameters may lie in memory as they like (slices, transposed, with gaps): what torch's fused kernels cannot take is
    stepped in a dense copy. A parameter with several elements in one place, two parameters in one memory, or an anchor
    in the parameter's own memory, raise ValueError.

    Of parameters sharded over processes (DTensor, as of ``fully_shard``) each process keeps and steps its own part;
    anchors may be whole tensors or sharded alike. What is said of a tensor or its rows is said of the whole ones: every
    process must call ``step`` equally often, and radii are the same on all.

    A group may hold the optimizer's settings, "anchor", and for others "name", a label, and "initial_lr". Any other key
    raises ValueError and any other keyword TypeError, naming it and what to do: of torch's options amsgrad, maximize,
    foreach, fused, capturable and differentiable are not supported; of the authors' codes see the book's page on these
    optimizers.

    The anchor has the parameter's dtype and is part of ``state_dict()``, larger by one copy of the anchored parameters
    therefore; a run resumed from it goes on bit for bit. The state is made with the optimizer, so that
    ``torch.distributed.checkpoint`` can load into it at once. Parameters without a gradient are skipped. Norms, ratios
    and radii are float32, float64 for float64 parameters.
    """

    # state that load_state_dict must not cast to the parameter's dtype
    _wide: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, params: Iterable[Any], anchor: Anchors, defaults: Group, unknown: Mapping[str, Any] | None = None
    ) -> None:
        outside_inference("an optimizer made")
        if problem := _problem(unknown or {}, {*defaults, "anchor"}):
            raise TypeError(f"{type(self).__name__}: {problem}")
        if isinstance(params, nn.Module | Tensor):
            raise TypeError(f"params must be parameters, as of model.parameters(), got {check.shown(params)}")
        params = list(params)
        if not params:
            raise ValueError("params is empty: give at least one of the model's parameters")
        by_order = not (anchor is None or anchor is False or isinstance(anchor, str | Mapping))
        if by_order and len(params) > 1 and isinstance(params[0], dict):
            raise ValueError(
                "a sequence of anchors does not say which group it is for; give each group its own 'anchor'"
            )
        # "fused" makes load_state_dict put step counts where torch's fused kernels want them
        super().__init__(params, {"anchor": anchor, **defaults, "fused": True})
        # tensors given here are spent: a group added later is anchored where it is
        self.defaults["anchor"] = anchor if anchor is False or isinstance(anchor, str) else None

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters; without an "anchor" of its own it is anchored where it is now.

        Raises ValueError for settings that cannot be, for anchors that do not fit or share memory with their parameter,
        and for parameters that are sparse or have several elements in one place of memory. Raises TypeError for
        parameters sharded in another way than by ``fully_shard`` or with the placements Shard and Replicate. Nothing
        is added then.
        """
        allowed = {*self.defaults, "params", "param_names", "initial_lr"} - {"fused"}
        if isinstance(param_group, dict) and (problem := _problem(param_group, allowed)):
            raise ValueError(f"{type(self).__name__}, keys of a group: {problem}")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["fused"] = True
        try:
            require(group, "lr", "weight_decay")
            self._check(group)
            anchors = _anchors(group)
            labels = [label for g in self.param_groups for label in g.get("param_names") or [""] * len(g["params"])]
            every = [local(p.detach()) for g in self.param_groups for p in g["params"]]
            refuse_overlap({f"parameter {n} {labels[n]}".strip(): p for n, p in enumerate(every)})
        except Exception:
            self.param_groups.pop()
            raise
        for p, anchor in zip(group["params"], anchors, strict=False):
            self.state[p]["anchor"] = anchor
        group["anchor"] = bool(anchors)  # from here on only whether there is one
        # now and not at the first step: torch.distributed.checkpoint fills only what is there already
        trained = [p for p in group["params"] if p.requires_grad]
        self._prepare(group, trained, [self.state[p] for p in trained])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient. Returns what `closure` returns, or None without one.

        Raises ValueError for a sparse gradient, and for a parameter that has got several elements in one place of
        memory or another shape or type, before any parameter changes.
        """
        loss = None
        if closure is not None:
            check.instance("closure", closure, Callable, "a function without arguments, or None")
            with torch.enable_grad():
                loss = closure()
        ready = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        with torch.no_grad():
            for group in self.param_groups:
                for label, p in zip(_labels(group), group["params"], strict=True):
                    if p.grad is None:
                        continue
                    if p.grad.layout != torch.strided:
                        raise ValueError(f"{label}: gradients must be dense; build embeddings with sparse=False")
                    check_parameter(label, local(p))
                    _require_state_of(label, p, self.state[p])
            for group, members in zip(self.param_groups, ready, strict=True):
                alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
                for p in members:
                    alike.setdefault((p.device, p.dtype), []).append(p)
                for params in alike.values():
                    self._update_own(group, params)
                for p in members:  # neither torch's fused steps nor ours tell autograd of the change
                    torch.autograd.graph.increment_version(p)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of what ``state_dict()`` returned: exactly, anchors and settings included.

        Raises ValueError if a group there is not one of this class or an anchor does not have its parameter's shape.
        """
        cure = "give what state_dict() of the same kind of optimizer returned"
        check.mapping("state_dict", state_dict, "as state_dict() returned it")
        if parts := {"state", "param_groups"} - state_dict.keys():
            raise ValueError(f"this state lacks {', '.join(sorted(parts))}; {cure}")
        groups = state_dict["param_groups"]
        settings = self.defaults.keys() - {"differentiable"}  # which torch adds on loading
        if absent := ", ".join(sorted({name for group in groups for name in settings - group.keys()})):
            raise ValueError(f"this is not the state of a {type(self).__name__}: its groups lack {absent}; {cure}")
        keys = [(key, group["anchor"]) for group in groups for key in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        saved = [(p, state_dict["state"].get(key, {}), anchored) for (key, anchored), p in zip(keys, own, strict=False)]
        for i, (p, state, anchored) in enumerate(saved):
            shape = tuple(state["anchor"].shape) if "anchor" in state else None
            if anchored and shape != tuple(p.shape):
                raise ValueError(
                    f"this is another model's state: parameter {i} is {tuple(p.shape)}, its anchor {shape}; {cure}"
                )
            tensors = {n: local(t) for n, t in state.items() if isinstance(t, Tensor)}
            check.finite({f"{n} of parameter {i} in the state": t for n, t in tensors.items()}, cure)
            for name, high in (("radius", math.inf), ("omega", 1.0)):
                if name in tensors:
                    check.number(f"{name} of parameter {i} in the state", tensors[name], 0, high)
        super().load_state_dict(state_dict)
        for p, state, _ in saved:
            for name, value in state.items():
                if name in self._wide:  # torch casts all state to the parameter's dtype
                    self.state[p][name] = value.to(p.device, copy=True)
                elif self.state[p][name] is value or not isinstance(value, Tensor):  # torch keeps what it need not cast
                    self.state[p][name] = copy.deepcopy(self.state[p][name])

    def _check(self, group: Group) -> None:
        """Raise ValueError for settings of a group that cannot be."""
        raise NotImplementedError

    def _update_own(self, group: Group, params: list[Tensor]) -> None:
        """One step for parameters of one device and dtype, all with a gradient; of sharded ones for what lies here."""
        states = [self.state[p] for p in params]
        grads = [g for p in params if (g := p.grad) is not None]
        self._prepare(group, params, states)
        if not any(map(is_sharded, params)):
            self._update_dense(group, params, grads, states, None)
            return
        norm = self._norm(group)
        key = (norm, *map(id, params))
        if key not in self._sharing:
            self._sharing[key] = Shards({str(i): p for i, p in enumerate(params)}, norm)
        grads = [part(g, p) for g, p in zip(grads, params, strict=True)]
        states = [{name: local(value) for name, value in s.items()} for s in states]
        self._update_dense(group, [local(p) for p in params], grads, states, self._sharing[key])

    def _update_dense(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], shards: Shards | None
    ) -> None:
        """The step, in copies where parameter, gradient and state are not blocks of memory in one order.

        torch's fused kernels go over memory number by number, and look at nothing else.
        """
        params, grads, states = list(params), list(grads), list(states)
        back: list[tuple[Tensor, Tensor]] = []
        for i, (p, g, state) in enumerate(zip(params, grads, states, strict=True)):
            shaped = [name for name, value in state.items() if name != "anchor" and value.shape == p.shape]
            apart = g.dtype == p.dtype and not same_block(g, p)
            if apart and fits(p, g, *(state[name] for name in shaped)):
                continue
            params[i] = own = p if dense(p) else torch.empty_like(p).copy_(p)
            grads[i] = torch.empty_like(own).copy_(g)
            copies = {name: torch.empty_like(own, dtype=state[name].dtype).copy_(state[name]) for name in shaped}
            states[i] = {**state, **copies}
            back += [(p, own), *((state[name], new) for name, new in copies.items())]
        self._update(group, params, grads, states, shards)
        for old, new in back:
            if old is not new:
                old.copy_(new)

    @property
    def _sharing(self) -> dict[tuple[Any, ...], Shards]:
        """How sharded parameters are shared out; not in what is pickled or copied."""
        found: dict[tuple[Any, ...], Shards] = self.__dict__.setdefault("_shards", {})
        return found

    def _norm(self, group: Group) -> Norm:
        """In which the optimizer measures a tensor."""
        return "l2"

    def _prepare(self, group: Group, params: list[Tensor], states: list[State]) -> None:
        """Make the state of parameters that have none yet."""
        adam_state(params, states)

    def _update(
        self, group: Group, params: list[Tensor], grads: list[Tensor], states: list[State], shards: Shards | None
    ) -> None:
        """One step; what has a parameter's shape is the part of it that lies here. State is written in place.

        Parameters, gradients and state, but not anchors, are dense and laid out alike (``layout.fits``).
        """
        raise NotImplementedError

    def _learned(self, value: str) -> Iterator[tuple[str, State]]:
        """Name (number, as in ``state_dict()``, if unnamed) and state of parameters that have taken a step with it."""
        number = 0
        for group in self.param_groups:
            names = group.get("param_names", [str(number + i) for i in range(len(group["params"]))])
            number += len(names)
            for name, p in zip(names, group["params"], strict=True):
                state = self.state[p]
                if value in state and state["step"].item():
                    yield name, state


def _problem(given: Mapping[str, Any], known: Iterable[str]) -> str | None:
    """What is wrong with the first of the settings that is not known here, and what to do; None if nothing is."""
    known = set(known)
    for key, value in given.items():
        off = key in _OFF and not value
        if key in known or off or (key == "fused" and value in (None, True)) or (key == "name" and type(value) is str):
            continue
        what = _INSTEAD.get(key) or f"{hint(key, known)}known are {', '.join(sorted(known - {'fused'}))}"
        return f"{key!r} is not supported: {what}"
    return None


def _require_state_of(label: str, p: Tensor, state: State) -> None:
    """Raise ValueError unless what is kept for a parameter has its shape and type: fused kernels do not look."""
    moment = state.get("exp_avg", state.get("momentum_buffer", p))
    if state.get("anchor", p).shape != p.shape or moment.shape != p.shape or moment.dtype != p.dtype:
        raise ValueError(
            f"{label}, {p.dtype} {tuple(p.shape)}, has got another shape or type since the optimizer was made, or the "
            "state of another: make the optimizer anew"
        )


def _labels(group: Group) -> list[str]:
    """What errors call the parameters of a group."""
    names: list[str] = group.get("param_names") or [f"parameter {i} of the group" for i in range(len(group["params"]))]
    return names


def _anchors(group: Group) -> list[Tensor]:
    """Copies of a group's anchors in the order of its parameters; none if it is unconstrained."""
    params, anchor, labels = group["params"], group["anchor"], _labels(group)
    for label, p in zip(labels, params, strict=True):
        if not p.is_floating_point():
            raise ValueError(f"{label} is {p.dtype}; only real floating-point parameters can be optimized")
        sharded.check_layout(label, p)
        check_parameter(label, local(p.detach()))
    if anchor is False:
        return []
    if isinstance(anchor, str | bool) or not (anchor is None or isinstance(anchor, Iterable)):
        if anchor != "zero":
            raise ValueError(f"anchor must be None, False, 'zero', a sequence or a mapping of tensors, got {anchor!r}")
        return [sharded.alike(zero(local(p.detach())), p) for p in params]
    if isinstance(anchor, Mapping):
        if params and "param_names" not in group:
            raise ValueError("anchors by name need named parameters; pass model.named_parameters() to the optimizer")
        refuse_checkpoint(anchor)
        if missing := [name for name in labels if name not in anchor]:
            raise ValueError(
                f"the anchor lacks {', '.join(missing[:5])}; put what has no pre-trained counterpart into a group with "
                "anchor=False"
            )
        anchor = [anchor[name] for name in labels]
    tensors = params if anchor is None else list(anchor)
    if len(tensors) != len(params):
        raise ValueError(f"{len(tensors)} anchors for {len(params)} parameters; give one for each, in their order")
    for label, p, tensor in zip(labels, params, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{label}: the anchor must be a tensor, got {tensor!r:.60}, a {type(tensor).__name__}")
        whose = f"params: {label}" if anchor is None else f"the anchor of {label}"
        check.finite({whose: local(tensor.detach())}, "load the weights anew, or give others as anchor")
        if tensor.shape != p.shape or not tensor.is_floating_point():
            raise ValueError(
                f"{label}: the anchor is {tensor.dtype} {tuple(tensor.shape)}, must be floating point {tuple(p.shape)}"
            )
        if anchor is not None and share_memory(local(p.detach()), local(tensor.detach())):
            raise ValueError(
                f"{label}: the anchor shares memory with the parameter and has moved with it; give a copy that clone() "
                "or copy.deepcopy made before training, or anchor=None for the parameters as they are now"
            )
    return [_copy(p, a.detach()) for p, a in zip(params, tensors, strict=True)]


@torch.no_grad()
def _copy(p: Tensor, anchor: Tensor) -> Tensor:
    own = local(p)
    return sharded.alike(torch.empty_like(own, requires_grad=False).copy_(part(anchor, p)), p)


def require(group: Group, *names: str, high: float = math.inf) -> None:
    """Raise ValueError unless the settings `names` of a group are finite numbers in [0, high]."""
    for name in names:
        check.number(name, group[name], 0, high)


def require_adam(group: Group) -> None:
    """Raise ValueError unless Adam can run with the group's betas and eps."""
    require(group, "eps")
    betas = group["betas"]
    if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
    for beta in betas:
        check.number("each of the two betas", beta, 0, 1, below=True)


def adam_state(params: list[Tensor], states: list[State]) -> None:
    """What Adam keeps, made where it is not there yet; moments in the parameters' dtype."""
    for p, state in zip(params, states, strict=True):
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)


def adam_step(group: Group, params: list[Tensor], grads: list[Tensor], states: list[State]) -> None:
    """One step of torch's fused AdamW, in place; for tensors that are dense and laid out alike."""
    adamw(
        params,
        grads,
        [s["exp_avg"] for s in states],
        [s["exp_avg_sq"] for s in states],
        [],
        [s["step"] for s in states],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def adam_scalar(states: list[State], name: str, slopes: Tensor, steps: Tensor, lr: float) -> Tensor:
    """Adam (betas 0.9 and 0.999, eps 1e-8) on the learned scalar `name` of every state.

    slopes: its gradients, shape (parameters,). steps: how many steps each parameter has taken, this one included.
    Updates the moments in the states; returns the new values, which the caller clips and stores.
    """
    beta1, beta2, eps, steps = 0.9, 0.999, 1e-8, steps.to(slopes.dtype)
    first, second = [s[f"{name}_exp_avg"] for s in states], [s[f"{name}_exp_avg_sq"] for s in states]
    mean, square = torch.stack(first).lerp(slopes, 1 - beta1), torch.stack(second).lerp(slopes.square(), 1 - beta2)
    store(states, f"{name}_exp_avg", mean)
    store(states, f"{name}_exp_avg_sq", square)
    # -expm1(t log β) is 1 − β^t without the cancellation that float32 has at small t
    mean, square = mean / -torch.expm1(steps * math.log(beta1)), square / -torch.expm1(steps * math.log(beta2))
    return torch.stack([s[name] for s in states]) - lr * mean / (square.sqrt() + eps)


def store(states: list[State], name: str, values: Tensor) -> None:
    """Write one value of `values`, shape (parameters,), into the scalar `name` of each state."""
    torch._foreach_copy_([s[name] for s in states], list(values.unbind()))

"""TPGM: a radius per parameter tensor, learned on held-out data through the projection (arXiv 2303.10720)."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tpgm import check
from tpgm._engine.exchange import Exchange
from tpgm._engine.gradients import Products, evaluating, loss_and_products
from tpgm._engine.interrupts import deliver, held
from tpgm._engine.layout import check_parameter, refuse_overlap, versions
from tpgm._engine.passes import Passes
from tpgm._engine.sharded import (
    Shards,
    average_over_,
    fingerprint,
    fsdp_modules,
    is_sharded,
    local,
    part,
    reshard,
    several_processes,
)
from tpgm.anchor import (
    Anchor,
    anchor_tensors,
    check_floating,
    match_anchor,
    outside_inference,
    refuse_shared,
    zero,
)
from tpgm.buffers import (
    Batches,
    Buffers,
    FollowingBuffers,
    Watch,
    batch_statistics,
    reestimate,
    state_kept,
)
from tpgm.names import aliases, default_groups, matches, names_left, require_match
from tpgm.projection import NORMS, Norm, count_rows, row_ratios

Unit = Literal["norm", "weight"]
Start = Literal["half-smallest", "largest"]

UNCHANGED = "radii and weights are unchanged: check the batch, or lower the learning rate of the training"
EPS = 1e-8  # the published code's guard in the ratio, and its smallest radius
WINDOW = 50  # projections after which a collapse is looked for


class TPGM:
    """Trainable Projected Gradient Method (Tian et al., CVPR 2023, arXiv 2303.10720, algorithm 1).

    Keeps for every trainable parameter tensor of `model` a radius γ around its pre-trained weights. A training loop
    alternates an ordinary optimizer step on training data, `update` (one Adam step on the radii, on validation data)
    and `project_`; or it trains as usual, calls `update` many times at the end and `project_` once.

    model: any ``nn.Module``; pass the DistributedDataParallel wrapper itself so that radius gradients are averaged over
    its processes, or a model to which ``fully_shard`` (FSDP2) has been applied, of which every process measures and
    projects its own part. anchor: module or state dict with the pre-trained weights, copied; by default the weights
    `model` has now; "zero" for adapters whose update starts at 0, kept without a copy. norm: "mars" (L1 norm of each
    row) or "l2" (Euclidean norm of the tensor). exclude: fnmatch patterns of parameter names left unconstrained (a new
    head); exact names go before wildcards, see `tpgm.names.reading`. lr: step size of Adam on the radii (``.optimizer``
    is that Adam), in the unit of the norm. penalty: μ ≥ 0 of the term ``μ Σ γ²`` of the controlled variant TPGM-C. tv:
    λ ≥ 0 of the term ``λ Σ |α_l − α_{l+1}|`` over neighbouring tensors of a group, α_l being the mean ratio of tensor l
    over its rows. (The exact forms of both terms are this project's reading of the paper.) groups: sequences of fnmatch
    patterns, one a group; by default blocks found from the parameter names.

    unit and start are this project's additions; the defaults are the published algorithm. unit: what `lr` is measured
    in. "norm": every radius moves by about lr an update, whatever its tensor's size. "weight": by about lr for each
    weight, that is lr times the length of a row ("mars") or the root of the number of weights ("l2"), so that radii
    keep pace with a training optimizer that moves each weight by about its own learning rate. start: "half-smallest",
    half the smallest row norm of the displacement at the first update, or "largest", its largest one: no constraint at
    first.

    Memory: the anchor, and during an update one copy of the constrained weights and the gradients of the validation
    loss (on a CPU only a few of them at a time). anchor_dtype: keep the anchor in this type (``torch.bfloat16`` halves
    that of float32 weights, and displaces it by up to 2⁻⁹ of each weight, from which displacements then count).
    anchor_device: keep it there ("cpu": in the host's memory; it is streamed to the weights' device in every pass).
    keep_copy: on a CPU, keep the memory of that copy between updates, because fresh memory costs more time there than
    the arithmetic; False gives it back.

    buffers: what BatchNorm's running statistics do when weights are projected, in `update`, `projected` and `project_`
    alike. "keep", the published behaviour: they stay as training left them. "reestimate": `update` uses the statistics
    of the validation batch, and after projecting they are estimated anew from `batches`, by `tpgm.buffers.reestimate`.
    "move": each floating-point buffer goes back with its own module's mean ratio. None, the default, is "keep" with one
    warning if there are running statistics that training has changed.

    Parameters that are frozen at construction or excluded are left alone; a warning names one that is unfrozen later.
    One frozen later is not projected meanwhile, and a radius steps only where the validation loss has a gradient. A
    tied parameter is constrained once, and one that has not moved yet gets its radius at the first update after it has.
    Radii are float32 (float64 for float64
    models); weights may be of any floating-point type.
    Raises ValueError for an anchor that does not fit or shares memory with the model, a pattern that matches nothing,
    an unknown norm, unit, start or word for buffers, a negative or non-finite lr, penalty or tv, or a model with
    nothing to constrain, RuntimeError inside ``torch.inference_mode``. Once made, its methods raise RuntimeError if the
    model has got other parameters.
    """

    @check.keywords
    def __init__(
        self,
        model: nn.Module,
        *,
        anchor: Anchor | None = None,
        norm: Norm = "mars",
        exclude: Sequence[str] = (),
        lr: float = 1e-2,
        penalty: float = 0.0,
        tv: float = 0.0,
        groups: Sequence[Sequence[str]] | None = None,
        unit: Unit = "norm",
        start: Start = "half-smallest",
        anchor_dtype: torch.dtype | None = None,
        anchor_device: torch.device | str | None = None,
        keep_copy: bool = True,
        buffers: Buffers | None = None,
    ) -> None:
        outside_inference("a TPGM made")
        check.module("model", model)
        check.choice("norm", norm, NORMS)
        check.choice("unit", unit, get_args(Unit))
        check.choice("start", start, get_args(Start))
        if buffers is not None:
            check.choice("buffers", buffers, get_args(Buffers))
        lr, penalty, tv = (check.number(n, v, 0) for n, v in (("lr", lr), ("penalty", penalty), ("tv", tv)))
        check.flag("keep_copy", keep_copy)
        kept_dtype = None if anchor_dtype is None else check.dtype("anchor_dtype", anchor_dtype)
        kept_device = None if anchor_device is None else check.device("anchor_device", anchor_device)
        exclude = check.sequence("exclude", exclude)
        if isinstance(anchor, str) and anchor != "zero":
            raise TypeError(f"anchor must be a module, a state dict (of a file: torch.load) or 'zero', got {anchor!r}")
        self._fsdp = fsdp_modules(model)
        reshard(self._fsdp)
        self.model, self.norm, self.penalty, self.tv = model, norm, penalty, tv
        self.unit, self.start = unit, start
        self._keeping = (kept_device, kept_dtype)
        self._passes = Passes(norm)
        parameters = aliases(model)
        given = {} if anchor == "zero" else anchor_tensors(model if anchor is None else anchor, model)
        exclude = tuple(require_match(pattern, [*parameters, *given], "exclude") for pattern in exclude)
        left = {name: parameters[name] for name in names_left(model, exclude) if parameters[name].numel()}
        self._params = {name: p for name, p in left.items() if p.requires_grad}
        self._frozen = {name: p for name, p in left.items() if not p.requires_grad}
        # compiled or not, the wrapper whose processes must agree on the radii
        self._ddp = next((m for m in model.modules() if isinstance(m, DistributedDataParallel)), None)
        sharded = any(map(is_sharded, self._params.values()))
        alone = self._ddp is None and not sharded
        if alone and several_processes():
            warnings.warn("several processes but no DistributedDataParallel: pass TPGM the wrapped model", stacklevel=3)
        if not self._params:
            frozen = f"{len(self._frozen)} are frozen (unfreeze some by requires_grad_())" if self._frozen else ""
            left_out = f"others are excluded by exclude={list(exclude)} (leave some in)" if exclude else ""
            why = ", ".join(filter(None, (frozen, left_out))) or "give the model whose weights are fine-tuned"
            kind = type(model).__name__
            raise ValueError(f"nothing to constrain in model, a {kind} of {len(parameters)} parameters: {why}")
        for name, p in self._params.items():
            check_parameter(name, local(p.data))
        refuse_overlap({name: local(p.data) for name, p in self._params.items()})
        self._zero = anchor == "zero"
        if self._zero:
            check_floating(self._params)
            self._anchor = {name: zero(local(p.detach())) for name, p in self._params.items()}
        else:
            found = match_anchor(model, model if anchor is None else given, self._params, exclude)
            if anchor is not None:
                refuse_shared(model, found)
            self._anchor = {n: self._kept(local(p.data), part(found[n].detach(), p)) for n, p in self._params.items()}
        self._shards = Shards(self._params, norm) if sharded else None
        # computed once: afterwards no process need wait for another
        self._prints = None if self._shards is None else self._shards.fingerprints(self._anchor)
        self._pairs = self._neighbours(groups)
        self.buffers: Buffers = buffers or "keep"
        self._following: FollowingBuffers | None = None
        self._watch: Watch | None = None
        if buffers == "move":
            self._following = FollowingBuffers(model, given, list(self._params), exclude)
            self._following.require()
        elif buffers is None:
            self._watch = Watch(model, given, exclude)

        first = next(iter(self._params.values()))
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in self._params.values()) else torch.float32
        # infinite: no constraint yet
        self._radii = nn.Parameter(torch.full((len(self._params),), math.inf, dtype=dtype, device=first.device))
        # values of rows that each tensor has
        self._rows = [count_rows(p, norm) for p in self._params.values()]
        self._lengths = torch.tensor(self._rows, device=first.device)
        # what Adam moves: γ itself, or γ over its unit
        self._unit = None if unit == "norm" else self._weight_units(dtype, first.device)
        self.optimizer = torch.optim.Adam([self._radii], lr=lr)
        self._norms: list[Tensor] | None = None  # row norms when last measured; what ratios() speaks of
        self._measured_at: list[tuple[int, int]] | None = (
            None  # the weights of the last update, as torch counts changes
        )
        self._projections = 0
        # radii that were on their floor after a projection of this window; None once the warning is given
        self._floored: Tensor | None = torch.zeros_like(self._radii, dtype=torch.bool)
        self._exchange = Exchange(model, list(self._params.values()), self._fsdp, keep_copy=keep_copy)

    def _kept(self, like: Tensor, anchor: Tensor) -> Tensor:
        """A copy of the anchor for the weights `like`, laid out as they are: two memory formats together are slow."""
        device, dtype = self._keeping
        device = like.device if device is None else device
        pinned = device.type == "cpu" and like.device.type == "cuda"  # copies to the GPU then need not wait
        empty = torch.empty_like(like, dtype=dtype or like.dtype, device=device)
        return (empty.pin_memory() if pinned else empty).copy_(anchor)

    def _weight_units(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Norm of a displacement of 1 in every weight of a row ("mars") or tensor ("l2"), one value a tensor."""
        sizes = [p.numel() // count_rows(p, self.norm) for p in self._params.values()]
        units = torch.tensor(sizes, dtype=dtype, device=device)
        return units if NORMS[self.norm].power == 1 else units.sqrt()

    def _neighbours(self, groups: Sequence[Sequence[str]] | None) -> list[tuple[int, int]]:
        """Index pairs of neighbouring constrained tensors, by group."""
        names = list(self._params)
        if groups is None:
            members = default_groups(names)
        else:
            members = []
            if isinstance(groups, str) or not isinstance(groups, Iterable) or not (groups := list(groups)):
                raise TypeError(f"groups must be None or groups of patterns such as [['a.*'], ['b.*']], got {groups!r}")
            for group in groups:
                if isinstance(group, str) or not isinstance(group, Iterable):
                    raise TypeError(f"each of groups must be a list of patterns such as ['a.*'], got {group!r}")
                if not (patterns := check.sequence("groups", group)):
                    raise ValueError(f"groups has an empty group, {group!r}: give each at least one pattern")
                patterns = tuple(require_match(pattern, names, "groups") for pattern in patterns)
                members.append([name for name in names if matches(name, patterns)])
        index = {name: i for i, name in enumerate(names)}
        return [(index[a], index[b]) for group in members for a, b in itertools.pairwise(group)]

    # --- looking at it

    @property
    def anchor(self) -> dict[str, Tensor]:
        """The pre-trained weights θ⁰ by parameter name (this object's own copy: do not write to it).

        Of sharded parameters the part that lies on this process.
        """
        return dict(self._anchor)

    @property
    def radii(self) -> dict[str, float]:
        """Radius γ by parameter name, in the unit of the norm; infinity where no constraint is in force yet."""
        return dict(zip(self._params, self._radii.tolist(), strict=True))

    @torch.no_grad()
    def ratios(self) -> dict[str, float]:
        """Ratio in [0, 1] by parameter name: the mean over rows of ``clip(γ / (n_i + 1e-8), 0, 1)``.

        They belong to the displacement last measured by `update`, `projected` or `project_`, that is before the
        projection itself shrank it; without any such call, to the weights as they are. Projected once at the end, a
        ratio is the share of the whole displacement that is kept. Projected at every step, it speaks of that step alone
        and is often near 1; what the run permitted then shows in `radii`.
        """
        norms = self._norms if self._norms is not None else self._measure()
        return dict(zip(self._params, self._mean_ratios(self._clipped(norms), norms).tolist(), strict=True))

    @torch.no_grad()
    def suggest_lr(self, updates: int) -> float:
        """The smallest learning rate with which every radius can get anywhere in `updates` updates.

        Adam moves a radius by at most about lr an update (book chapter 5, the budget law). Validation data may want any
        ratio from 0 to 1, so ``lr · updates`` should be at least ``max(n_l − γ_l, γ_l)`` for every tensor, n_l being
        its largest row norm and γ_l the radius that the next update would begin with, both in the unit of `lr`. It
        speaks of the weights as they are: call it after the training for radii learned at the end, after a free
        beginning for radii learned along with it. Set the result by
        ``constraint.optimizer.param_groups[0]["lr"] = constraint.suggest_lr(200)``.
        Raises ValueError if `updates` is below 1, or if no constrained weight has moved yet.
        """
        updates = check.number("updates", updates, 1, whole=True)
        norms = self._measure()
        radii = self._clipped(norms, start=True)
        largest = torch.segment_reduce(self._flat(norms), "max", lengths=self._lengths)
        way = torch.maximum(largest - radii, radii) / (1.0 if self._unit is None else self._unit)
        way = way[radii.isfinite() & largest.isfinite() & (largest > 0)]
        if not len(way):
            raise ValueError("no constrained weight has moved yet: call suggest_lr after training steps")
        return float(way.max()) / updates

    def __repr__(self) -> str:
        lr = self.optimizer.param_groups[0]["lr"]
        count = sum(p.numel() for p in self._params.values())
        return (
            f"TPGM({len(self._params)} tensors, {count:,} weights, norm={self.norm!r}, lr={lr}, "
            f"penalty={self.penalty}, tv={self.tv})"
        )

    # --- the algorithm

    def update(self, closure: Callable[[], Tensor]) -> float:
        """One projection update: one Adam step on the radii. Returns the validation loss at the projected weights.

        closure: takes nothing and returns the loss of the model on a validation batch, a scalar tensor with a gradient;
        it must not call ``backward`` nor change modes. Under autocast use bfloat16: small gradients vanish in float16.
        Activation checkpointing must be of the non-reentrant kind (``use_reentrant=False``). While the closure runs,
        the model's parameters hold the projected weights and the model is in eval mode. Afterwards weights, gradients
        and modes are as they were, and so are the registered buffers of all modules. So are, for modules that are not
        torch's own, attributes that are numbers, texts, None or tensors (a counter ``self.seen``); lists, dicts and
        other objects that ``forward`` changes stay changed. Ctrl-C and other signals reach the closure at once; around
        it they wait until all this is in place, so that radii are as before the call or, if the signal came in the last
        moment, stepped. Radii start as `start` says and are clipped to [1e-8, largest row norm]
        before use.
        Raises FloatingPointError if a weight, the loss or a gradient is NaN or infinite, TypeError or
        ValueError if the loss is not a scalar tensor with a gradient through a constrained parameter; radii and weights
        are then as before the call. On several processes all must call it, as also `project_` and `projected`.
        """
        check.instance("closure", closure, Callable, "a function without arguments, that returns the loss")
        self._warn_of_statistics(3)
        self._warn_of_unfrozen(3)
        with held():
            return self._update(closure)

    def _update(self, closure: Callable[[], Tensor]) -> float:
        norms = self._measure()
        radii = self._clipped(norms, start=True)
        hooks = bool(self._fsdp or self._shards)
        statistics = batch_statistics(self.model) if self.buffers == "reestimate" else nullcontext()
        swapped = self._swapped_in(radii, norms)
        kept, modes = state_kept(self.model), evaluating(self.model, self._ddp, self._fsdp)
        with kept, modes, statistics, swapped as unprojected:
            products = Products(self._passes, unprojected, self._anchors())
            loss, dots = loss_and_products(closure, list(self._params.values()), products, hooks=hooks)
        slopes = self._radius_gradient(radii, norms, dots)
        touched = [float(i in products.arrived) for i in range(len(self._params))]
        value, untouched = self._average(loss, slopes, touched)
        slopes += self._regularizer_gradient(radii, norms)
        if not bool(slopes.isfinite().all()):
            raise FloatingPointError(f"the gradient of the validation loss is NaN or infinite; {UNCHANGED}")
        deliver()  # the last moment at which radii can stay as they were
        self._norms, self._measured_at = norms, self._versions()
        with torch.no_grad():
            self._radii.copy_(radii if self._unit is None else radii / self._unit)
        self._radii.grad = slopes if self._unit is None else slopes * self._unit
        self._step_where_touched(untouched)
        with torch.no_grad():
            if self._unit is not None:
                self._radii.mul_(self._unit)
            self._radii.clamp_(min=EPS)
        self.optimizer.zero_grad(set_to_none=True)
        return value

    @check.keywords
    @torch.no_grad()
    def project_(self, *, unmoved: bool = False, batches: Batches | None = None) -> None:
        """Project the model's weights in place, ``θ_i ← θ⁰_i + Δ_i clip(γ / (n_i + 1e-8), 0, 1)``.

        unmoved: the weights are as they were at the last `update`, whose norms serve again, which more than halves the
        time. Changes that torch counts are noticed and measured; writing to ``p.data`` is not, nor are the steps of
        torch's optimizers with ``fused=True``.
        batches: with ``buffers="reestimate"``, what running statistics are then estimated from, as for
        `tpgm.buffers.reestimate`. None leaves them as they are, for a training in train mode that goes on.
        Before the first `update` no radius exists: the weights stay as they are and a warning says so.
        Raises FloatingPointError, with the weights as they were, if one is NaN or infinite (`unmoved` does not look).
        Signals wait until the weights are projected.
        """
        check.flag("unmoved", unmoved)
        self._refuse_while_swapped("project_")
        self._check_batches(batches)
        self._warn_of_statistics(5)  # two frames are the decorators'
        self._warn_of_unfrozen(5)
        if not self.optimizer.state and bool(self._radii.isinf().all()):
            warnings.warn("project_() before the first update(): there are no radii yet", stacklevel=4)
        with held():
            self._project(unmoved)
        self._watch_for_collapse(5)
        if batches is not None:
            reestimate(self.model, batches)

    def _project(self, unmoved: bool) -> None:
        seen = self._measured_at
        if unmoved and self._norms is not None and seen is not None and seen == self._versions():
            norms = self._norms
        else:
            norms = self._norms = self._measure()
        self._measured_at = None  # the projection moves them
        self._radii.copy_(self._clipped(norms))
        weights = self._weights()
        self._scale(weights, weights, self._radii.detach(), norms)
        reshard(self._fsdp)
        if self._following is not None:
            self._following.move_(self._mean_ratios(self._radii.detach(), norms))

    @contextmanager
    def projected(self, *, batches: Batches | None = None) -> Iterator[None]:
        """Context under which the model has the projected weights (to evaluate or save it); undone on leaving.

        batches: as in `project_`. Registered buffers come back on leaving, too. Raises as `project_` does.
        """
        self._refuse_while_swapped("projected")
        self._check_batches(batches)
        self._warn_of_statistics(4)
        stack = ExitStack()
        try:
            with held():
                norms = self._norms = self._measure()
                self._measured_at = None
                stack.enter_context(state_kept(self.model, attributes=False))
                stack.enter_context(self._swapped_in(self._clipped(norms), norms))
            if batches is not None:
                reestimate(self.model, batches)
            yield
        finally:
            try:
                with held():
                    stack.close()
            finally:
                stack.close()  # does something only if a signal came before the others were held

    # --- exact resume

    def state_dict(self) -> dict[str, Any]:
        """A copy of the radii, the state of their Adam, what `ratios` speaks of, and a fingerprint of the anchor.

        Not the anchor itself. Holds plain containers, numbers and tensors only, so that
        ``torch.load(weights_only=True)`` reads it back.
        """
        return {
            "norm": self.norm,
            "unit": self.unit,
            "buffers": self.buffers,
            "radii": {name: r.clone() for name, r in zip(self._params, self._radii.detach(), strict=True)},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "norms": None if self._norms is None else [n.clone() for n in self._norms],
            "anchor": self._fingerprints(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken. Construct with the same pre-trained weights first.

        Raises ValueError, with everything as it was, if the state is of another model, anchor, norm, unit or buffers.
        """
        cure = "construct TPGM as when the state was saved, or take another state"
        check.mapping("state", state, "as TPGM's state_dict() returned it")
        if absent := {"norm", "radii", "optimizer", "norms", "anchor"} - set(state):
            raise ValueError(f"not a state of TPGM: it lacks {', '.join(sorted(absent))}; give one of state_dict()")
        for what, default in (("norm", None), ("unit", "norm"), ("buffers", self.buffers)):
            if (theirs := state.get(what, default)) != (own := getattr(self, what)):
                raise ValueError(f"the state has {what} {theirs!r}, this constraint {own!r}; {cure}")
        radii = check.mapping("radii of the state", state["radii"], "from parameter names to tensors")
        if (ours := set(self._params)) != set(radii):
            raise ValueError(
                "the state belongs to another model (or another exclude): it lacks "
                f"{sorted(ours - set(radii))[:5]} and has {sorted(set(radii) - ours)[:5]} besides; {cure}"
            )
        if set(check.mapping("anchor of the state", state["anchor"], "from parameter names to tensors")) != ours or any(
            isinstance(r, Tensor) and r.numel() != 1 for r in radii.values()
        ):
            raise ValueError(f"the state is damaged: it lacks the one radius or anchor of a parameter; {cure}")
        for name, r in radii.items():
            if not isinstance(r, Tensor) or not float(r) >= 0:
                got = float(r) if isinstance(r, Tensor) else repr(r)
                raise ValueError(f"the radius of {name} in the state must be a number of at least 0, got {got}; {cure}")
        norms = state["norms"]
        if norms is not None and [len(n) if isinstance(n, Tensor) else None for n in norms] != self._rows:
            own = f"{sum(self._rows)} rows of {len(self._rows)} tensors"
            raise ValueError(f"norms saved: {len(norms)} tensors or other rows, not {own}; {cure}")
        if any(bool((n < 0).any()) for n in norms or ()):
            raise ValueError(f"norms saved are negative; {cure}")
        check.finite({f"norms of {n} in the state": t for n, t in zip(self._params, norms or (), strict=False)}, cure)
        for name, own_print in self._fingerprints().items():
            saved = state["anchor"][name]
            if not torch.allclose(saved.cpu(), own_print, rtol=1e-9, atol=1e-9 * float(own_print[1])):
                raise ValueError(
                    f"the state was saved with another anchor ({name} differs): construct TPGM with the pre-trained "
                    "weights, either before loading the fine-tuned ones or by anchor=…"
                )
        adam = state["optimizer"]
        if not isinstance(adam, Mapping) or not {"state", "param_groups"} <= set(adam):
            raise ValueError(f"the optimizer of the state is not one of Adam, got {check.shown(adam)}; {cure}")
        check.finite({n: t for of in adam["state"].values() for n, t in of.items() if isinstance(t, Tensor)}, cure)
        for what, kept in adam["state"].get(0, {}).items():  # Adam itself looks at nothing
            if kept.shape not in ((), self._radii.shape) or (what != "exp_avg" and bool((kept < 0).any())):
                raise ValueError(f"{what} of Adam in the state has another shape or is negative; {cure}")
        for group in adam["param_groups"]:
            check.number("lr of Adam in the state", group["lr"], 0)
            for beta in group["betas"]:
                check.number("each beta of Adam in the state", beta, 0, 1, below=True)
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        with torch.no_grad():
            self._radii.copy_(torch.stack([state["radii"][name].to(self._radii) for name in self._params]))
        self._norms = (
            None if norms is None else [n.to(p.device) for n, p in zip(norms, self._params.values(), strict=True)]
        )

    # --- pieces

    def _versions(self) -> list[tuple[int, int]] | None:
        """Where the weights lie and how often they have changed; None if parts lie on other processes."""
        if self._shards is not None:
            return None
        return versions(self._params.values())

    def _require_parameters(self) -> None:
        """Raise RuntimeError, with names, if the model has other parameters now in the place of those constrained."""
        if self._fsdp:  # gathered parameters stand in for the parts
            return
        there = set(map(id, self.model.parameters()))
        if gone := [name for name, p in self._params.items() if id(p) not in there]:
            raise RuntimeError(
                f"no longer parameters of the model: {', '.join(gone[:5])} (replaced by another layer, "
                "load_state_dict(assign=True) or the like); construct TPGM anew, with the pre-trained weights as anchor"
            )

    def _frozen_since(self) -> Tensor | None:
        """Which constrained tensors have been frozen since construction, bool, shape (tensors,); None if none."""
        frozen = [not p.requires_grad for p in self._params.values()]
        return torch.tensor(frozen, device=self._radii.device) if any(frozen) else None

    def _warn_of_unfrozen(self, stacklevel: int) -> None:
        if unfrozen := [name for name, p in self._frozen.items() if p.requires_grad]:
            for name in unfrozen:
                del self._frozen[name]
            more = f" and {len(unfrozen) - 5} more" if len(unfrozen) > 5 else ""
            warnings.warn(
                f"unfrozen since construction and therefore not constrained: {', '.join(unfrozen[:5])}{more}; to "
                "constrain them construct TPGM anew, with the pre-trained weights as anchor",
                stacklevel=stacklevel,
            )

    def _step_where_touched(self, untouched: Tensor | None) -> None:
        """A step of Adam; radii of tensors without a gradient, and what Adam remembers of them, stay as they are."""
        if untouched is None:
            self.optimizer.step()
            return
        kept = {k: v.clone() for k, v in self.optimizer.state[self._radii].items() if v.shape == self._radii.shape}
        radii = self._radii.detach().clone()
        self.optimizer.step()
        with torch.no_grad():
            self._radii.copy_(torch.where(untouched, radii, self._radii))
            for key, value in self.optimizer.state[self._radii].items():
                if value.shape == radii.shape:
                    value.copy_(torch.where(untouched, kept.get(key, torch.zeros_like(value)), value))

    def _weights(self) -> list[Tensor]:
        """The parameters' memory; of sharded ones what lies here."""
        return [local(p.data) for p in self._params.values()]

    def _anchors(self) -> list[Tensor]:
        return list(self._anchor.values())

    def _scale(self, outs: Sequence[Tensor], weights: Sequence[Tensor], radii: Tensor, norms: Sequence[Tensor]) -> None:
        """Projected weights into `outs`, of sharded ones what lies here."""
        ratios = torch.split(self._row_ratios(radii, norms), self._rows)
        own = ratios if self._shards is None else [self._shards.own(i, r) for i, r in enumerate(ratios)]
        self._passes.scale(outs, weights, self._anchors(), [r.to(n) for r, n in zip(own, norms, strict=True)])

    # one value a row, or a tensor, of all tensors at once: what a GPU does must not grow with their number

    def _flat(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([r.to(self._radii) for r in rows])

    def _by_row(self, values: Tensor) -> Tensor:
        return values.repeat_interleave(self._lengths, output_size=sum(self._rows))

    def _row_ratios(self, radii: Tensor, norms: Sequence[Tensor]) -> Tensor:
        if (frozen := self._frozen_since()) is not None:
            radii = radii.masked_fill(frozen, math.inf)
        return row_ratios(self._flat(norms), self._by_row(radii), EPS)

    def _fingerprints(self) -> dict[str, Tensor]:
        """Copies, by name."""
        if self._prints is not None:
            return {name: print_.clone() for name, print_ in self._prints.items()}
        return {name: fingerprint(tensor) for name, tensor in self._anchor.items()}

    @torch.no_grad()
    def _measure(self) -> list[Tensor]:
        """Row norms of every displacement."""
        self._refuse_while_swapped("measuring the displacement")
        self._require_parameters()
        for name, p in self._params.items():
            a = self._anchor[name]
            device, dtype = self._keeping
            if (a.device, a.dtype) != (device or p.device, dtype or p.dtype):  # the model was moved since
                self._anchor[name] = zero(local(p)) if self._zero else self._kept(local(p.data), a)
        norms = self._passes.measure(self._weights(), self._anchors())
        norms = norms if self._shards is None else self._shards.norms(norms)
        if not bool(self._flat(norms).isfinite().all()):
            bad = [name for name, n in zip(self._params, norms, strict=True) if not n.isfinite().all()]
            names = ", ".join(bad[:5])
            raise FloatingPointError(f"weights are NaN or infinite in {names}: lower the learning rate of the training")
        return norms

    @torch.no_grad()
    def _clipped(self, norms: Sequence[Tensor], *, start: bool = False) -> Tensor:
        """The radii as they are used: clipped; with `start`, those of tensors that have now moved begin."""
        flat, lengths = self._flat(norms), self._lengths
        largest = torch.segment_reduce(flat, "max", lengths=lengths)
        radii = self._radii.detach()
        if start:
            smallest = torch.segment_reduce(flat, "min", lengths=lengths)
            radii = torch.where(radii.isinf(), largest if self.start == "largest" else smallest / 2, radii)
        clipped = torch.minimum(radii, largest).clamp(min=EPS)
        # a tensor that has not moved says nothing about its radius
        in_force = radii.isfinite() & (largest > 0)
        if (frozen := self._frozen_since()) is not None:
            in_force &= ~frozen
        return torch.where(in_force, clipped, self._radii.detach())

    def _mean_ratios(self, radii: Tensor, norms: Sequence[Tensor]) -> Tensor:
        return torch.segment_reduce(self._row_ratios(radii, norms), "mean", lengths=self._lengths)

    def _radius_gradient(self, radii: Tensor, norms: Sequence[Tensor], dots: Sequence[Tensor]) -> Tensor:
        """``∂L/∂γ = Σ_i 1[γ ≤ n_i + 1e-8] ⟨∇_i L, Δ_i⟩ / (n_i + 1e-8)``, chapter 2.

        The gradient counts at the upper clip γ = max n_i too, where float32 decides by rounding whether the ratio is 1;
        otherwise a radius that reached it could never tighten again.
        """
        rows = self._flat(dots if self._shards is None else self._shards.add(dots))
        n = self._flat(norms)
        active = self._by_row(radii) / (n + EPS) <= 1
        return torch.segment_reduce(torch.where(active, rows / (n + EPS), 0.0), "sum", lengths=self._lengths)

    def _regularizer_gradient(self, radii: Tensor, norms: Sequence[Tensor]) -> Tensor:
        """Gradient of ``μ Σ γ² + λ Σ |α_l − α_{l+1}|``; radii not in force yet take no part."""
        in_force = radii.isfinite()
        slopes = torch.where(in_force, 2 * self.penalty * radii, 0.0)
        if not self.tv or not self._pairs:
            return slopes
        means = self._mean_ratios(radii, norms)
        left, right = torch.tensor(self._pairs, device=radii.device).T
        sign = torch.sign(means[left] - means[right]) * (in_force[left] & in_force[right])
        by_ratio = torch.zeros_like(radii).index_add(0, left, sign).index_add(0, right, -sign)
        n = self._flat(norms)
        active = (n > 0) & (self._by_row(radii) / (n + EPS) <= 1)
        by_radius = torch.where(active, 1 / (n + EPS), 0.0)
        return slopes + self.tv * by_ratio * torch.segment_reduce(by_radius, "mean", lengths=self._lengths)

    def _average(self, loss: Tensor, slopes: Tensor, touched: Sequence[float]) -> tuple[float, Tensor | None]:
        """Mean over the processes of a data-parallel or sharded model, so that all take the same step.

        touched: 1 for a tensor with a gradient here, else 0. Returns the loss, and which tensors have no gradient on
        any process, None if all have one here.
        """
        value = loss.reshape(1).to(slopes)
        untouched: Tensor | None = None
        if self._ddp is not None or self._shards is not None:
            all_ = torch.cat([value, slopes, slopes.new_tensor(touched)])
            if self._ddp is not None:
                average_over_(all_, self._ddp.process_group)
            elif self._shards is not None:
                all_ = self._shards.average_(all_)
            value, mean, share = torch.split(all_, [1, len(slopes), len(slopes)])
            slopes.copy_(mean)
            untouched = share == 0
        elif not all(touched):
            untouched = slopes.new_tensor(touched) == 0
        result = float(value)
        if not math.isfinite(result):
            raise FloatingPointError(f"the validation loss is {result}; {UNCHANGED}")
        return result, untouched

    @contextmanager
    def _swapped_in(self, radii: Tensor, norms: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Let parameters hold the projected weights, and following buffers theirs; yields the unprojected weights."""
        moved = nullcontext() if self._following is None else self._following.moved(self._mean_ratios(radii, norms))
        with self._exchange(lambda outs, weights: self._scale(outs, weights, radii, norms)) as unprojected, moved:
            yield unprojected

    def _check_batches(self, batches: Batches | None) -> None:
        if batches is not None and self.buffers != "reestimate":
            cure = "leave batches out, or construct TPGM with buffers='reestimate'"
            raise ValueError(f"batches are for buffers='reestimate', this constraint has {self.buffers!r}: {cure}")

    def _warn_of_statistics(self, stacklevel: int) -> None:
        """Once, and only if the user has not chosen."""
        if self._watch is not None and (name := self._watch.changed()) is not None:
            self._watch = None
            warnings.warn(
                f"the running statistics of BatchNorm ({name}) were changed by training and stay as they are when "
                "weights are projected. After a projection at the end they are those of other weights: take "
                "buffers='reestimate' and project_(batches=…) with training batches. Where training in train mode goes "
                "on after each projection, or to have them kept (the published behaviour), say buffers='keep'",
                stacklevel=stacklevel,
            )

    def _watch_for_collapse(self, stacklevel: int) -> None:
        """Warn once if most radii fell to their floor within `WINDOW` projections; a GPU waits at the last."""
        if self._floored is None:
            return
        self._floored |= self._radii <= EPS
        self._projections += 1
        if self._projections % WINDOW:
            return
        count, of = int(self._floored.sum()), len(self._floored)
        if 2 * count <= of:
            self._floored.zero_()
            return
        self._floored = None
        warnings.warn(
            f"the constraint has collapsed: within {WINDOW} projections {count} of {of} radii fell to their floor, and "
            "their weights to the anchor. Single steps are too noisy a guide: let training run free for the first four "
            'fifths (begin=0.8 of the method "tpgm") or learn the radii once at the end, with lr from suggest_lr()',
            stacklevel=stacklevel,
        )

    def _refuse_while_swapped(self, what: str) -> None:
        if self._exchange.active:
            raise RuntimeError(
                f"{what} while the model already holds projected weights (inside projected or a closure)"
            )

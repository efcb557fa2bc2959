"""BatchNorm's running statistics when weights go back towards their anchor: kept, moved along, or estimated anew.

Running statistics describe the activations of the weights they were collected with. With ratio α the weights become
``θ⁰ + α (θ − θ⁰)``; then the statistics b of a training in train mode are those of other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tpgm import check
from tpgm._engine import interrupts
from tpgm._engine.gradients import eval_mode
from tpgm._engine.layout import dense
from tpgm._engine.sharded import is_sharded
from tpgm.names import canonical, matches, unwrap

Buffers = Literal["keep", "move", "reestimate"]
Batches = Iterable[Any] | Callable[[], Any]


def with_statistics(model: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    """The modules of `model` that keep running statistics: BatchNorm, and InstanceNorm that tracks them."""
    kind = nn.modules.batchnorm._NormBase
    return [m for m in model.modules() if isinstance(m, kind) and m.running_mean is not None]


@contextmanager
def more_than_one() -> Iterator[None]:
    """What torch says of BatchNorm in train mode on one image alone, with what can be done."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"BatchNorm in train mode cannot take the statistics of one image alone ({error}): choose a batch size "
            "that leaves no batch of one, drop_last=True in a DataLoader, or keep BatchNorm in eval mode"
        ) from error


@torch.no_grad()
def reestimate(model: nn.Module, batches: Batches) -> None:
    """Replace running statistics by the mean over `batches` of each batch's own mean and variance, in place.

    batches: inputs of `model`, each a tensor, a tuple or list whose first entry is one, or a mapping of keyword
    arguments; tensors are moved to the model's device. Or a function without arguments that makes the forward passes
    itself. Take training data, as the model sees them at inference, in batches as large as those of training.

    Only modules with running statistics are in train mode meanwhile; dropout is off. Weights, modes, momentum and the
    count of batches are afterwards as they were, and so are the statistics of a module that no pass reached. A model
    without running statistics is left alone. Under DistributedDataParallel every process estimates from its own
    batches. As ``torch.optim.swa_utils.update_bn`` (stochastic weight averaging, arXiv 1803.05407), without dropout.
    Raises ValueError if no batch came, or one of a single image to a BatchNorm that sees no more of it; then, and if a
    pass raises, the statistics are as before.
    """
    modules = with_statistics(check.module("model", model))
    if not callable(batches) and (isinstance(batches, str) or not isinstance(batches, Iterable)):
        raise TypeError(f"batches must be an iterable (such as a DataLoader) or a function, got {check.shown(batches)}")
    if modules:
        with interrupts.held():
            _reestimate(model, modules, batches)


def _reestimate(model: nn.Module, modules: Sequence[nn.modules.batchnorm._NormBase], batches: Batches) -> None:
    before = [(m, m.momentum, dict(m._buffers)) for m in modules]
    copies = [{key: None if b is None else b.clone() for key, b in m._buffers.items()} for m in modules]
    reached = [False] * len(modules)
    try:
        with eval_mode(model):
            for m in modules:
                m.train()
                if m.num_batches_tracked is None:  # without a count torch makes no mean over batches
                    m.num_batches_tracked = torch.zeros((), dtype=torch.long, device=m.running_mean.device)  # type: ignore[union-attr]
                m.momentum = None  # the cumulative mean
                m.reset_running_stats()
            with more_than_one():
                interrupts.passing(batches if callable(batches) else lambda: _forward_passes(model, batches))
        counts = [m.num_batches_tracked for m in modules]
        reached = [count is not None and bool(count > 0) for count in counts]
        if not any(reached):
            raise ValueError("no batch to estimate running statistics from: batches is empty, give at least one")
        if bad := [m for m, r in zip(modules, reached, strict=True) if r and not bool(m.running_var.isfinite().all())]:  # type: ignore[union-attr]
            reached = [False] * len(modules)
            raise FloatingPointError(f"running statistics are NaN or infinite in {len(bad)} modules; left as before")
    finally:
        for (m, momentum, buffers), saved, done in zip(before, copies, reached, strict=True):
            m.momentum = momentum
            for key, buffer in buffers.items():
                keeps = done and key != "num_batches_tracked"
                if buffer is not None and not keeps:
                    buffer.copy_(saved[key])  # type: ignore[arg-type]
                if not keeps:
                    m._buffers[key] = buffer


def _forward_passes(model: nn.Module, batches: Iterable[Any]) -> None:
    device = next((t.device for t in model.parameters()), torch.device("cpu"))
    for batch in batches:
        if isinstance(batch, Mapping):
            model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()})
        else:
            given = batch[0] if isinstance(batch, tuple | list) else batch
            model(given.to(device) if isinstance(given, Tensor) else given)


@contextmanager
def state_kept(model: nn.Module, *, attributes: bool = True) -> Iterator[None]:
    """Registered buffers of all modules, persistent or not, are put back afterwards: which they are, and their values.

    attributes: so are numbers, texts, None and tensors among the attributes of modules that are not torch's own. What
    lies in lists, dicts and other objects is not. A buffer that has got another dtype or device meanwhile keeps it.
    """
    places = [(m._buffers, dict(m._buffers)) for m in model.modules()]
    if attributes:
        own = (m for m in model.modules() if not type(m).__module__.startswith("torch."))
        places += [(m.__dict__, dict(m.__dict__)) for m in own]
    tensors = {id(t): t for _, before in places for t in before.values() if isinstance(t, Tensor)}
    alike: dict[tuple[Any, ...], list[Tensor]] = {}  # copied in one piece, which a GPU does in one kernel
    for t in tensors.values():
        if not (t.is_inference() or t.is_meta):
            alone = is_sharded(t) or not dense(t)
            alike.setdefault((t.device, t.dtype, alone and id(t)), []).append(t)
    versions = [of[0]._version for of in alike.values()]
    copies = [
        of[0].detach().clone() if alone else torch.cat([t.detach().reshape(-1) for t in of])
        for (*_, alone), of in alike.items()
    ]
    try:
        yield
    finally:
        # by .data, which tells autograd nothing: a graph of the training may hold these tensors, with these values
        for ((*_, alone), of), version, copy in zip(alike.items(), versions, copies, strict=True):
            if not alone:  # in any case: torch's batch_norm changes statistics without counting the change
                parts = torch.split(copy, [t.numel() for t in of])
                torch._foreach_copy_([t.data for t in of], [part.view_as(t) for t, part in zip(of, parts, strict=True)])
            elif of[0]._version != version:
                of[0].data.copy_(copy)
        for now, before in places:
            _put_back_entries(now, before)


def _put_back_entries(now: dict[str, Any], before: dict[str, Any]) -> None:
    plain: Any = (bool, int, float, complex, str, type(None), Tensor)
    for name, old in before.items():
        new: Any = now.get(name)
        if new is old or not isinstance(old, plain):
            continue
        tensors = isinstance(new, Tensor) and isinstance(old, Tensor) and new.shape == old.shape
        if tensors and (new.dtype, new.device) != (old.dtype, old.device):  # as by `model.double()`
            new.detach().copy_(old.detach())
        else:
            now[name] = old
    for name in [name for name, new in now.items() if name not in before and isinstance(new, plain)]:
        del now[name]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Modules with running statistics normalise by each batch's own; within `state_kept` the running ones stay.

    Call it in eval mode, to which the modules return.
    """
    modules = with_statistics(model)
    for m in modules:
        m.train()
    try:
        with more_than_one():
            yield
    finally:
        for m in modules:
            m.eval()


@torch.no_grad()
def _put_back(saved: Iterable[tuple[nn.Module, str, Tensor]]) -> None:
    for module, key, copy in saved:  # looked up anew: `model.double()` makes other tensors
        now = module._buffers[key]
        assert now is not None
        now.copy_(copy)


@dataclass(frozen=True)
class _Held:
    """A floating-point buffer: where it is, its value at the anchor (None: unknown), the tensors whose ratio counts."""

    module: nn.Module
    key: str
    name: str
    start: Tensor | None
    of: tuple[int, ...]

    @property
    def now(self) -> Tensor:
        found = self.module._buffers[self.key]
        assert found is not None
        return found


class FollowingBuffers:
    """The floating-point buffers of a model beside those of its anchor.

    given: the anchor's tensors by canonical name. constrained: names of the constrained parameters, in the order in
    which ratios come. A buffer follows the mean ratio of the constrained parameters of its own module; in a module
    without parameters of its own (BatchNorm with ``affine=False``) the mean over all constrained tensors. Left alone
    are integers, non-persistent buffers, names that `exclude` fits, and buffers of a module none of whose parameters
    is constrained.
    """

    def __init__(
        self, model: nn.Module, given: Mapping[str, Tensor], constrained: Sequence[str], exclude: Sequence[str]
    ) -> None:
        self._model = model
        index = {name: i for i, name in enumerate(constrained)}
        same: dict[int, int] = {}
        for name, p in unwrap(model).named_parameters(remove_duplicate=False):
            if canonical(name) in index:
                same[id(p)] = index[canonical(name)]
        self._held: list[_Held] = []
        for prefix, module in unwrap(model).named_modules():
            own = list(module.parameters(recurse=False))
            of = tuple(same[id(p)] for p in own if id(p) in same)
            for key, buffer in module._buffers.items():
                name = canonical(f"{prefix}.{key}".lstrip("."))
                transient = key in module._non_persistent_buffers_set
                if buffer is None or not buffer.is_floating_point() or transient or matches(name, exclude):
                    continue
                if of or not own:
                    start = given.get(name)
                    held = None if start is None else start.detach().to(buffer, copy=True)
                    self._held.append(_Held(module, key, name, held, of or tuple(index.values())))

    def require(self) -> None:
        """Raise ValueError, with names, where the anchor lacks a buffer or has one that does not fit."""
        problems = []
        for held in self._held:
            if held.start is None:
                problems.append(f"{held.name} is missing")
            elif held.start.shape != held.now.shape:
                problems.append(f"{held.name}: anchor {tuple(held.start.shape)}, model {tuple(held.now.shape)}")
            elif not bool(held.start.isfinite().all()):
                problems.append(f"{held.name} holds NaN or infinite values")
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(
                f"buffers='move' needs the anchor's buffers ({', '.join(problems[:3])}{more}): give the pre-trained "
                "module or its whole state dict as anchor, or buffers='keep' or 'reestimate'"
            )

    @torch.no_grad()
    def move_(self, ratios: Tensor | float) -> None:
        """Put every buffer to ``b⁰ + α (b − b⁰)`` where the anchor has it.

        ratios: α for each constrained tensor, shape (tensors,), or one for all.
        """
        for held in self._held:
            if held.start is None:
                continue
            now = held.now
            if isinstance(ratios, Tensor):
                own = ratios if len(held.of) == len(ratios) else ratios[list(held.of)]
                now.lerp_(held.start.to(now), 1 - own.mean().to(now))
            else:
                now.lerp_(held.start.to(now), 1 - ratios)

    @contextmanager
    def moved(self, ratios: Tensor) -> Iterator[None]:
        """`move_` for a while."""
        saved = [(held.module, held.key, held.now.clone()) for held in self._held]
        try:
            self.move_(ratios)
            yield
        finally:
            _put_back(saved)


class Watch:
    """Whether running statistics are those of other weights than the anchor's. given, exclude: as above."""

    def __init__(self, model: nn.Module, given: Mapping[str, Tensor], exclude: Sequence[str]) -> None:
        self._looked = False
        modules = {id(m) for m in with_statistics(model)}
        self._modules: list[tuple[str, nn.Module, dict[str, Tensor], bool]] = []
        for prefix, module in unwrap(model).named_modules():
            names = {key: canonical(f"{prefix}.{key}".lstrip(".")) for key in ("running_mean", "running_var")}
            if id(module) in modules and not any(matches(name, exclude) for name in names.values()):
                known = all(name in given for name in names.values())
                now = module.state_dict()
                starts = {k: (given[n] if known else now[k]).detach().clone() for k, n in names.items()}
                self._modules.append((canonical(prefix), module, starts, known))

    def changed(self) -> str | None:
        """The name of a module whose statistics have changed, None if there is none.

        After the first call only modules in train mode are looked at, for a comparison waits for the device. In train
        mode, and with an anchor that has no statistics, a module counts as changed.
        """
        first, self._looked = not self._looked, True
        for name, module, starts, known in self._modules:
            if not (first or module.training):
                continue
            if module.training and not known:
                return name
            for key, start in starts.items():
                now = module._buffers[key]
                if now is not None and (now.shape != start.shape or not torch.equal(now, start.to(now))):
                    return name
        return None

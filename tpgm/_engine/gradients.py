"""Gradients of a validation loss, taken so that the training step around it does not notice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tpgm._engine.interrupts import passing
from tpgm._engine.passes import Passes
from tpgm._engine.sharded import Fsdp, own_pass, part, reshard
from tpgm.check import shown

REENTRANT = (
    "the model checkpoints activations in the reentrant way, which hides gradients from torch.autograd.grad: give "
    "use_reentrant=False"
)


HELD = 1 << 20  # numbers of gradients that wait for their product: 4 MiB of float32, still in cache


class Products:
    """Row products of gradient and displacement, ``⟨g_i, W_i − W⁰_i⟩``, taken while gradients arrive.

    weights, anchors: in the order of the parameters, as ``Passes.dots`` takes them. ``.early`` says whether products
    are taken before all gradients are there, ``.arrived`` holds the indices of those that came. On other devices than
    a CPU none is early: launching a kernel for each tensor costs more there than memory does.
    """

    def __init__(self, passes: Passes, weights: Sequence[Tensor], anchors: Sequence[Tensor]) -> None:
        self._passes, self._weights, self._anchors = passes, weights, anchors
        self.early = all(w.device.type == "cpu" for w in weights)
        self.arrived: set[int] = set()
        self._waiting: dict[int, Tensor] = {}
        self._found: dict[int, Tensor] = {}

    def add(self, index: int, gradient: Tensor) -> None:
        """Take the whole gradient of the parameter with this index."""
        self.arrived.add(index)
        self._waiting[index] = gradient
        if self.early and sum(g.numel() for g in self._waiting.values()) >= HELD:
            self._take(self._waiting)
            self._waiting = {}

    def result(self) -> list[Tensor]:
        """Shape (rows,) for each parameter; zeros where no gradient came."""
        self._take({i: self._waiting.get(i) for i in range(len(self._weights)) if i not in self._found})
        return [self._found[i] for i in range(len(self._weights))]

    def _take(self, gradients: Mapping[int, Tensor | None]) -> None:
        weights, anchors = ([tensors[i] for i in gradients] for tensors in (self._weights, self._anchors))
        self._found |= zip(gradients, self._passes.dots(list(gradients.values()), weights, anchors), strict=True)


def loss_and_products(
    closure: Callable[[], Tensor], parameters: Sequence[nn.Parameter], products: Products, *, hooks: bool
) -> tuple[Tensor, list[Tensor]]:
    """The closure's loss, detached, and the row products of its gradients with the displacements.

    On a CPU a gradient is dropped once its product is taken. A second set of gradients beside those of training would
    need fresh memory, which costs more than the arithmetic.
    hooks: by ``backward()``, for the hooks of FSDP know nothing of ``torch.autograd.grad``; the parameters' own
    gradients are lost then. What is raised is said in ``TPGM.update``.
    """
    with torch.enable_grad():
        try:
            loss = passing(closure)
        except TypeError:
            _require_no_arguments(closure)
            raise
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"closure must return the loss as a tensor, not its .item(): got {shown(loss)}, a {type(loss).__name__}"
            )
        if loss.numel() != 1:
            raise ValueError(f"closure must return a scalar loss, got shape {tuple(loss.shape)}: take its mean or sum")
        if loss.is_complex():
            raise ValueError("closure must return a real loss, got a complex one: take its real part or its abs()")
        if not loss.requires_grad:
            raise ValueError("closure returned a loss without gradient: compute it with the model, not under no_grad")
        trained = {i: p for i, p in enumerate(parameters) if p.requires_grad}
        if not trained:
            raise ValueError(
                "every constrained parameter has been frozen since construction: unfreeze some (requires_grad_()), or "
                "leave out update while they are frozen"
            )
        try:
            absent = _by_backward(loss, trained, products) if hooks else _by_grad(loss, trained, products)
        except RuntimeError as error:
            if "second time" in str(error):
                raise ValueError("closure called backward(): it must only return the loss") from error
            if "use_reentrant" in str(error):
                raise ValueError(REENTRANT) from error
            raise
    if not hooks and absent and hides_gradients(loss):
        raise ValueError(REENTRANT)
    if absent == len(trained):
        raise ValueError(
            "the closure's loss does not depend on any constrained parameter of this model: compute it with the model "
            "that TPGM was given, not a copy"
        )
    return loss.detach(), products.result()


def _require_no_arguments(closure: Callable[[], Tensor]) -> None:
    try:
        inspect.signature(closure).bind()
    except TypeError as error:
        raise TypeError(
            f"closure is called without arguments, but: {error}; give lambda: loss(batch) or functools.partial"
        ) from None
    except ValueError:  # a builtin, which has no signature
        pass


def _by_backward(loss: Tensor, trained: Mapping[int, nn.Parameter], products: Products) -> int:
    """Number of parameters without a gradient; also of `_by_grad`."""
    for p in trained.values():
        p.grad = None  # of a backward() in the closure
    loss.sum().backward()
    for i, p in trained.items():
        if p.grad is not None:
            products.add(i, part(p.grad, p))
    return sum(p.grad is None for p in trained.values())


def _by_grad(loss: Tensor, trained: Mapping[int, nn.Parameter], products: Products) -> int:
    def taking(index: int) -> Callable[[Tensor], Tensor | None]:
        def take(gradient: Tensor) -> Tensor | None:
            """Called once, with the sum over all uses of the parameter; what it returns is what autograd keeps."""
            products.add(index, gradient)
            if type(gradient) is not Tensor or gradient.layout != torch.strided:
                return None
            return gradient.new_zeros(()).expand(gradient.shape)

        return take

    handles = [p.register_hook(taking(i)) for i, p in trained.items()] if products.early else []
    try:
        gradients = torch.autograd.grad(loss.sum(), list(trained.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    if not products.early:
        for i, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                products.add(i, gradient)
    return sum(g is None for g in gradients)


def hides_gradients(loss: Tensor) -> bool:
    """Whether a reentrant checkpoint took part in computing `loss`: gradients of its parameters come out as None."""
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        ahead += [following for following, _ in node.next_functions]
    return False


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is in the mode it was in, and its own ``train`` has been called if it has one.

    Such a method may do more than set a flag (LoRA layers that merge their weights), and sets its children's.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        own = [(module, training) for module, training in modes if type(module).train is not nn.Module.train]
        for module, training in own:  # parents come first
            module.train(training)
        for module, training in own:  # unless they share a child, which the second one has set once more
            if module.training != training:
                module.train(training)
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module, ddp: DistributedDataParallel | None, fsdp: Sequence[Fsdp]) -> Iterator[None]:
    """Eval mode, no gradients to add to, no synchronization by DistributedDataParallel; all put back afterwards."""
    reshard(fsdp)
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters]
    synchronizing = {}
    if ddp is not None:
        flags = ("require_backward_grad_sync", "require_forward_param_sync")
        synchronizing = {flag: getattr(ddp, flag) for flag in flags}
    for p in parameters:
        p.grad = None
    for flag in synchronizing:
        setattr(ddp, flag, False)
    try:
        with eval_mode(model), own_pass(fsdp):
            yield
    finally:
        reshard(fsdp)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        for flag, value in synchronizing.items():
            setattr(ddp, flag, value)

"""The gradient of a validation loss, taken so that the training step around it does not notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tpgm._engine.sharded import Fsdp, own_pass, part, reshard

REENTRANT = (
    "the model checkpoints activations in the reentrant way, which hides gradients from torch.autograd.grad: give "
    "use_reentrant=False"
)


def loss_and_gradients(
    closure: Callable[[], Tensor], parameters: Sequence[nn.Parameter], *, hooks: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """The closure's loss, detached, and its gradients, None for a parameter that is frozen or takes no part.

    hooks: by ``backward()``, for the hooks of FSDP know nothing of ``torch.autograd.grad``; the parameters' own
    gradients are lost then. What is raised is said in ``TPGM.update``.
    """
    with torch.enable_grad():
        loss = closure()
        if not isinstance(loss, Tensor):
            raise TypeError(f"closure must return the loss as a tensor, got {type(loss).__name__}")
        if loss.numel() != 1:
            raise ValueError(f"closure must return a scalar loss, got shape {tuple(loss.shape)}")
        if not loss.requires_grad:
            raise ValueError("closure returned a loss without gradient: compute it with the model, not under no_grad")
        trained = [p for p in parameters if p.requires_grad]
        if not trained:
            raise ValueError("every constrained parameter has been frozen since construction")
        try:
            gradients: Sequence[Tensor | None]
            if hooks:
                gradients = _by_backward(loss, trained)
            else:
                gradients = torch.autograd.grad(loss.sum(), trained, allow_unused=True)
        except RuntimeError as error:
            if "second time" in str(error):
                raise ValueError("closure called backward(): it must only return the loss") from error
            if "use_reentrant" in str(error):
                raise ValueError(REENTRANT) from error
            raise
    if not hooks and any(g is None for g in gradients) and hides_gradients(loss):
        raise ValueError(REENTRANT)
    if all(g is None for g in gradients):
        raise ValueError("the closure's loss does not depend on any constrained parameter of this model")
    found = iter(gradients)
    return loss.detach(), [next(found) if p.requires_grad else None for p in parameters]


def _by_backward(loss: Tensor, trained: Sequence[nn.Parameter]) -> list[Tensor | None]:
    for p in trained:
        p.grad = None  # of a backward() in the closure
    loss.sum().backward()
    return [None if p.grad is None else part(p.grad, p) for p in trained]


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

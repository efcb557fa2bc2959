"""Graphs that ``torch.autograd.grad`` cannot look through."""

from __future__ import annotations

from torch import Tensor

REENTRANT = (
    "the model checkpoints activations in the reentrant way, which hides gradients from torch.autograd.grad: give "
    "use_reentrant=False"
)


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

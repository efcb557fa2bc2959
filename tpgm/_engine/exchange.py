"""Let the parameters of a model hold other values for a while."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tpgm._engine.sharded import Fsdp, is_sharded, local, reshard


class Exchange:
    """Puts other values into `parameters` of `model` and the old ones back; of sharded ones what lies here.

    keep_copy: on a CPU, keep the memory of the one copy that this takes (``.copies``) for the next time. ``.active``
    says whether the other values are there now.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], fsdp: Sequence[Fsdp], *, keep_copy: bool
    ) -> None:
        self.model, self.parameters, self.keep_copy = model, parameters, keep_copy
        self.copies: list[Tensor] = []
        self.active = False
        self._fsdp = fsdp

    @contextmanager
    def __call__(self, fill: Callable[[Sequence[Tensor], Sequence[Tensor]], None]) -> Iterator[list[Tensor]]:
        """Under this context the parameters hold what ``fill(outs, weights)`` writes; yields the old values.

        Where a parameter's memory is its own alone, on a CPU, it is made to point to other memory; elsewhere its own
        is written to, so that wrappers, captured graphs and flat buffers stay valid.
        """
        weights = [local(p.data) for p in self.parameters]
        copies, pointing = self._room(weights), self.own_memory()
        if pointing:
            old = weights
            fill(copies, weights)
        else:
            old = copies
            torch._foreach_copy_(copies, weights)
        self.active = True
        try:
            if pointing:
                for p, c in zip(self.parameters, copies, strict=True):
                    p.data = c
            else:
                fill(weights, weights)
            self._forget_casts()
            yield old
        finally:
            if pointing:
                for p, w in zip(self.parameters, weights, strict=True):
                    p.data = w
            else:  # where they lie now: FSDP may give the parts new memory in the first forward pass
                torch._foreach_copy_([local(p.data) for p in self.parameters], copies)
            self._forget_casts()
            self.active = False

    def _forget_casts(self) -> None:
        """What was gathered or, by an enclosing autocast, cast from the values that were there before."""
        reshard(self._fsdp)
        torch.clear_autocast_cache()

    def own_memory(self) -> bool:
        """Whether every parameter lies on a CPU in memory that no other tensor of the model looks into."""
        users: dict[int, int] = {}
        for t in itertools.chain(self.model.parameters(), self.model.buffers()):
            if is_sharded(t):
                return False
            users[t.untyped_storage().data_ptr()] = users.get(t.untyped_storage().data_ptr(), 0) + 1
        return all(
            p.device.type == "cpu"
            and p.untyped_storage().nbytes() == p.numel() * p.element_size()
            and users[p.untyped_storage().data_ptr()] == 1
            for p in self.parameters
        )

    def _room(self, weights: Sequence[Tensor]) -> list[Tensor]:
        same = len(self.copies) == len(weights) and all(
            (c.dtype, c.device, c.stride()) == (w.dtype, w.device, w.stride())
            for c, w in zip(self.copies, weights, strict=True)
        )
        copies = self.copies if same else [torch.empty_like(w) for w in weights]
        self.copies = copies if self.keep_copy and all(w.device.type == "cpu" for w in weights) else []
        return copies

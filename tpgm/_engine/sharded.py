"""Parameters whose parts lie on several processes (DTensor, of FSDP2 or tensor parallelism): what is added up where.

A process works on its own part of every parameter and anchor. Only values of rows (norms, products with the gradient)
are exchanged, so that every process knows those of all rows and takes the same step on the radii.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tpgm.projection import NORMS, Norm

Split = tuple[Any, tuple[int, ...]]  # a device mesh, and those of its dimensions that split a tensor

FLAT = "FullyShardedDataParallel hides tensors in flat buffers; shard with fully_shard (FSDP2) instead"


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor, told without importing what defines it."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """This process's part of a DTensor, in its own memory (call it where no gradient is recorded); others as is."""
    found: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return found


def several_processes() -> bool:
    """Whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average_over_(values: Tensor, group: Any) -> None:
    """The mean over the processes of a group, in place."""
    dist.all_reduce(values, group=group)
    values /= dist.get_world_size(group)


def check_layout(name: str, p: Tensor) -> None:
    """Raise TypeError for what processes share in a way that is not supported, under its name."""
    if hasattr(p, "_is_flat_param"):
        raise TypeError(f"{name}: {FLAT}")
    if is_sharded(p):
        from torch.distributed.tensor import Replicate, Shard

        placements: Sequence[Any] = getattr(p, "placements", ())
        if any(type(place) not in (Shard, Replicate) for place in placements):
            raise TypeError(f"{name} is laid out as {placements}; only Shard and Replicate are supported")


def alike(part: Tensor, like: Any) -> Tensor:
    """A tensor of which `part` lies on this process, laid out as the DTensor `like`; `part` itself if that is none."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def part(tensor: Any, like: Any) -> Tensor:
    """What of a whole tensor lies on this process where `like` does; a DTensor laid out otherwise is gathered first."""
    if is_sharded(tensor):
        if is_sharded(like) and (tensor.device_mesh, tensor.placements) == (like.device_mesh, like.placements):
            return local(tensor)
        return part(tensor.full_tensor(), like)
    whole: Tensor = tensor
    return _cut(whole, like, range(like.dim())) if is_sharded(like) else whole


def _cut(tensor: Tensor, like: Any, dims: Sequence[int]) -> Tensor:
    """The part of `tensor` that follows from how the dimensions `dims` of `like` are split, as ``torch.chunk`` does."""
    mesh = like.device_mesh
    for placement, size, rank in zip(like.placements, mesh.shape, mesh.get_coordinate(), strict=True):
        if placement.is_shard() and placement.dim in dims:
            chunks = tensor.chunk(size, placement.dim)
            tensor = chunks[rank] if rank < len(chunks) else tensor.narrow(placement.dim, 0, 0)
    return tensor


class Shards:
    """How the rows of sharded parameters lie on the processes, by index of the parameter.

    params: parameters by name, some of them DTensors; the others are taken to be the same on every process. Of several
    device meshes the largest must hold the processes of all. Raises TypeError for placements other than Shard and
    Replicate.
    """

    def __init__(self, params: Mapping[str, Tensor], norm: Norm) -> None:
        self.norm = norm
        self._rows: list[int] = []  # of the whole tensor
        self._own: list[Tensor | None] = []  # which of them lie here; None: all
        self._split: list[Split] = []
        self._lines: list[tuple[Split, Split]] = []  # what cuts lines of numbers (see `lines`), and what lies between
        for name, p in params.items():
            by_row = NORMS[norm].by_row and p.dim() > 1
            self._rows.append(rows := p.shape[0] if by_row else 1)
            check_layout(name, p)
            placements: Sequence[Any] = getattr(p, "placements", ())
            split = tuple(i for i, place in enumerate(placements) if place.is_shard())
            self._split.append((mesh := getattr(p, "device_mesh", None), split))
            cut = tuple(i for i in split if placements[i].dim == min(1, p.dim() - 1))
            self._lines.append(((mesh, cut), (mesh, tuple(i for i in split if i not in cut))))
            divided = by_row and any(placements[i].dim == 0 for i in split)
            self._own.append(_cut(torch.arange(rows), p, [0]).to(p.device) if divided else None)
        self.mesh = max((mesh for mesh, _ in self._split if mesh is not None), key=lambda mesh: int(mesh.size()))

    def own(self, index: int, values: Tensor) -> Tensor:
        """Those of one value a row, shape (rows,), that belong to rows on this process."""
        rows = self._own[index]
        return values if rows is None else values[rows]

    def add(self, values: Sequence[Tensor]) -> list[Tensor]:
        """From each process's sums over its part of its rows, those over whole rows, of all rows; by parameter.

        values: shape (rows on this process,) each. Every process gets the same numbers.
        """
        whole: list[Tensor] = []
        for index, value in enumerate(values):
            rows = self._own[index]
            whole.append(value if rows is None else value.new_zeros(self._rows[index]).index_copy(0, rows, value))
        return _added(whole, self._split)

    def lines(self, values: Sequence[Tensor]) -> list[Tensor]:
        """From sums over the parts here of lines of numbers, those over these lines as a whole.

        A line runs along dimension 1; a tensor of fewer dimensions is one. values: any shape each, by parameter.
        """
        return _added(values, [cut for cut, _ in self._lines])

    def over_lines(self, values: Sequence[Tensor]) -> list[Tensor]:
        """From sums over the lines of which a part is here, those over all lines; by parameter."""
        return _added(values, [between for _, between in self._lines])

    def norms(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Row norms of whole tensors, of all rows, from those of the parts that lie here."""
        if NORMS[self.norm].power == 1:
            return self.add(parts)
        squares = self.add([p.double().square() for p in parts])
        return [square.sqrt().to(p) for square, p in zip(squares, parts, strict=True)]

    def average_(self, values: Tensor) -> Tensor:
        """The mean over all processes of the mesh, in place."""
        return values.copy_(_sum(values, self.mesh, range(self.mesh.ndim)) / self.mesh.size())

    def fingerprints(self, anchor: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of whole anchors, by name, from this process's parts."""
        sums = torch.stack([fingerprint(a) for a in anchor.values()])
        for (mesh, dims), members in _alike(self._split):
            sums[members] = _sum(sums[members], mesh, dims)
        return dict(zip(anchor, sums.unbind(), strict=True))


def _alike(splits: Sequence[Split]) -> list[tuple[Split, list[int]]]:
    """Indices of parameters that are split in the same way, in the same order on every process."""
    found: dict[Split, list[int]] = {}
    for i, (mesh, dims) in enumerate(splits):
        if dims:
            found.setdefault((mesh, dims), []).append(i)
    return list(found.items())


def _added(values: Sequence[Tensor], splits: Sequence[Split]) -> list[Tensor]:
    """Each value added up over the processes that its split names; what is split alike travels together."""
    whole = list(values)
    for (mesh, dims), members in _alike(splits):
        flat = _sum(torch.cat([whole[i].flatten() for i in members]), mesh, dims)
        for i, piece in zip(members, torch.split(flat, [whole[i].numel() for i in members]), strict=True):
            whole[i] = piece.view_as(whole[i]).to(whole[i])
    return whole


def _sum(values: Tensor, mesh: Any, dims: Iterable[int]) -> Tensor:
    """Sums over dimensions of a mesh; on the mesh's device, for parameters may be kept on the CPU."""
    sums = values.to(mesh.device_type, copy=True)
    for i in dims:
        dist.all_reduce(sums, group=mesh.get_group(i))
    return sums.to(values.device)


def fingerprint(tensor: Tensor) -> Tensor:
    """Sum and L1 norm in float64, on the CPU."""
    values = tensor.detach().cpu().double()
    return torch.stack([values.sum(), values.abs().sum()])


# --- modules of fully_shard

Fsdp = Any  # torch.distributed.fsdp.FSDPModule, which is not imported for the sake of a name


def fsdp_modules(model: nn.Module) -> list[Fsdp]:
    """The modules to which ``fully_shard`` was applied, outermost first. Raises TypeError for the older FSDP."""
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise TypeError(FLAT)
    return [m for m in model.modules() if any(c.__name__ == "FSDPModule" for c in type(m).__mro__)]


def reshard(modules: Sequence[Fsdp]) -> None:
    """Drop gathered parameters that a forward pass has left, so that the next one gathers what the parts hold now."""
    for module in modules:
        module.reshard()


@contextmanager
def own_pass(modules: Sequence[Fsdp]) -> Iterator[None]:
    """For a backward pass that is not the user's. Raises RuntimeError where gradients are still being accumulated."""
    for module in modules:
        state = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        if any(group is not None and not group.reduce_grads for group in groups):
            raise RuntimeError(
                "the model accumulates gradients without synchronizing them: call update() after optimizer.step(), or "
                "model.set_requires_gradient_sync(True) before it"
            )
    try:
        yield
    except BaseException:
        for module in modules:
            if module._get_fsdp_state()._is_root:  # older versions of torch cannot forget a pass that broke off
                getattr(module, "reset_iter_state", lambda: None)()
        raise

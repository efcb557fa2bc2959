"""What two processes check together, started by test_processes.py; each check is given the process's rank."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from tpgm import TPGM
from tpgm._engine.sharded import local
from tpgm.optim import SGDP, AdamP, AdamSPD, DiGraP

CHECKS: dict[str, Callable[..., None]] = {}
SKIPPED: dict[str, str] = {}  # and why
STEPS = 4


def check(function: Callable[..., None]) -> Callable[..., None]:
    name = function.__name__
    if name.startswith("fsdp") and torch.__version__ < (2, 9):
        SKIPPED[name] = "before torch 2.9, fully_shard on a CPU breaks off or adds gradients up without averaging them"
    else:
        CHECKS[name] = function
    return function


class Net(nn.Module):
    """Rows that two processes cannot share evenly: 5, 7, 3, vectors of 5 and 7, and one row, of which one gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 7), nn.LayerNorm(7))
        self.scale = nn.Parameter(torch.ones(1, 7))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * self.scale)


def start(wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model moved away from its anchor, wrapped; and the anchor."""
    torch.manual_seed(0)
    model = Net()
    anchor = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return wrap(model), anchor


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(24) % 3
    return torch.randn(24, 2, 4, 4, generator=generator) + y[:, None, None, None] - 1, y


X, Y = data()
ALL = slice(None)


def closure(model: nn.Module, mine: slice) -> Callable[[], Tensor]:
    return lambda: cross_entropy(model(X[mine]), Y[mine])


def train(model: nn.Module, mine: slice, constraint: TPGM | None = None, optimizer: Any = None) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        closure(model, mine)().backward()
        optimizer.step()
        if constraint is not None:
            with torch.no_grad():
                model(X[mine])  # leaves weights of FSDP's root gathered, which must not be seen below
            constraint.update(closure(model, mine))
            constraint.project_()


def whole(model: nn.Module) -> list[Tensor]:
    weights = [p.detach() for p in model.parameters()]
    return [w.full_tensor() if hasattr(w, "full_tensor") else w.clone() for w in weights]


def near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def close(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert abs(ours[name] - value) <= 1e-5 * abs(value), (name, ours[name], value)


def agree(constraint: TPGM) -> None:
    """Bit for bit the same on both processes."""
    found: list[Any] = [None, None]
    dist.all_gather_object(found, (constraint.radii, constraint.ratios()))
    assert found[0] == found[1]


def single(model: nn.Module, **settings: Any) -> TPGM:
    """Of a model that each process has to itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "several processes but no DistributedDataParallel", UserWarning)
        return TPGM(model, **settings)


def as_one_process(rank: int, wrap: Callable[[nn.Module], nn.Module], **settings: Any) -> TPGM:
    """Train on half of each batch here, half there, and on all of it alone: the results agree."""
    model, anchor = start(wrap)
    constraint = TPGM(model, anchor=anchor, **settings)
    train(model, slice(rank, None, 2), constraint)
    plain, anchor = start()
    alone = single(plain, anchor=anchor, **settings)
    train(plain, ALL, alone)
    agree(constraint)
    close(constraint.radii, alone.radii)
    close(constraint.ratios(), alone.ratios())
    assert min(alone.ratios().values()) < 0.99, "the constraint binds"
    near(whole(model), whole(plain))
    return constraint


def shard(model: nn.Module, **settings: Any) -> nn.Module:
    fully_shard(model.body, **settings)
    return fully_shard(model, **settings)


OPTIONS = {"tv": 0.1, "penalty": 0.01, "unit": "weight", "start": "largest", "exclude": ["head.*"], "lr": 3e-3}


@check
def ddp(rank: int) -> None:
    as_one_process(rank, DistributedDataParallel)
    as_one_process(rank, DistributedDataParallel, norm="l2", **OPTIONS)


@check
def ddp_compiled(rank: int) -> None:
    as_one_process(rank, lambda m: torch.compile(DistributedDataParallel(m), backend="eager"))


@check
def fsdp_mars(rank: int) -> None:
    constraint = as_one_process(rank, shard)
    rows = [len(a) for a in constraint.anchor.values()]
    assert rows == ([0, 2, 2, 3, 3, 3, 3, 1, 1] if rank else [1, 3, 3, 4, 4, 4, 4, 2, 2])
    as_one_process(rank, shard, **OPTIONS)


@check
def fsdp_l2(rank: int) -> None:
    as_one_process(rank, shard, norm="l2")
    as_one_process(rank, shard, norm="l2", **OPTIONS)


@check
def fsdp_replicated_and_on_other_meshes(rank: int) -> None:
    """Sharded inside a node, replicated between nodes; either may be trivial."""
    for shape in ((2, 1), (1, 2)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("between", "inside"))
        as_one_process(rank, lambda m, mesh=mesh: shard(m, mesh=mesh), norm="l2")


@check
def fsdp_checkpointed_and_compiled(rank: int) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        model.body = checkpoint_wrapper(model.body)
        return torch.compile(shard(model), backend="eager")

    as_one_process(rank, wrap)


@check
def fsdp_leaves_the_training_step_as_it_was(rank: int) -> None:
    model, anchor = start(shard)
    constraint = TPGM(model, anchor=anchor)
    model.body.eval()
    closure(model, slice(rank, None, 2))().backward()
    before, gradients = whole(model), [p.grad for p in model.parameters()]
    values = [local(g).clone() for g in gradients]
    loss = constraint.update(closure(model, slice(rank, None, 2)))
    assert all(map(torch.equal, whole(model), before))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(local(g), v) for g, v in zip(gradients, values, strict=True))
    assert (model.training, model.body.training) == (True, False)
    plain, _ = start()
    alone = single(plain, anchor=anchor)
    assert abs(alone.update(closure(plain, ALL)) - loss) < 1e-6
    with constraint.projected(), alone.projected(), torch.no_grad():
        near([model(X)], [plain(X)])
        near(whole(model), whole(plain))
    assert all(map(torch.equal, whole(model), before))
    with torch.no_grad():
        near([model(X)], [plain(X)])


@check
def fsdp_may_first_run_with_projected_weights(rank: int) -> None:
    """FSDP gives the parts of parameters new memory in its first forward pass; weights are put back all the same."""
    model, anchor = start(shard)
    constraint, before = TPGM(model, anchor=anchor), whole(model)
    with constraint.projected(), torch.no_grad():
        model(X)
    assert all(map(torch.equal, whole(model), before))


@check
def fsdp_state(rank: int) -> None:
    mine = slice(rank, None, 2)
    model, anchor = start(shard)
    constraint = TPGM(model, anchor=anchor)
    train(model, mine, constraint)
    saved, weights = constraint.state_dict(), [local(p.detach()).clone() for p in model.parameters()]
    train(model, mine, constraint)

    again, _ = start(shard)
    second = TPGM(again, anchor={name: p.detach().clone() for name, p in start(shard)[0].named_parameters()})
    with pytest.raises(ValueError, match="another anchor"):
        second.load_state_dict(saved)
    second = TPGM(again, anchor=anchor)
    with torch.no_grad():
        for p, w in zip(again.parameters(), weights, strict=True):
            local(p.data).copy_(w)
    second.load_state_dict(saved)
    train(again, mine, second)
    assert all(map(torch.equal, whole(again), whole(model)))
    assert second.radii == constraint.radii

    one = TPGM(start(DistributedDataParallel)[0], anchor=anchor)  # not sharded: the state does not know
    one.load_state_dict(saved)
    assert list(one.radii.values()) == [float(r) for r in saved["radii"].values()]
    second.load_state_dict(one.state_dict())
    agree(second)


@check
def fsdp_keeps_a_part_of_the_anchor_or_none(rank: int) -> None:
    model, anchor = start(shard)
    for given in (None, anchor):
        kept = TPGM(model, anchor=given).anchor
        for name, p in model.named_parameters():
            assert kept[name].untyped_storage().nbytes() == 4 * local(p.detach()).numel()
    for kept_nothing in TPGM(model, anchor="zero").anchor.values():
        assert kept_nothing.untyped_storage().nbytes() == 4


@check
def fsdp_wrong_use(rank: int) -> None:
    model, anchor = start(shard)
    constraint = TPGM(model, anchor=anchor)
    before = whole(model)

    def interrupted() -> Tensor:
        model(X)
        raise KeyError("stop")

    def backward() -> Tensor:
        loss = closure(model, ALL)()
        loss.backward()
        return loss

    with pytest.raises(KeyError, match="stop"):
        constraint.update(interrupted)
    with pytest.raises(ValueError, match="closure called backward"):
        constraint.update(backward)
    with pytest.raises(FloatingPointError, match="the validation loss is nan"):
        constraint.update(lambda: closure(model, ALL)() * (torch.nan if rank else 1.0))
    model.set_requires_gradient_sync(False)
    with pytest.raises(RuntimeError, match="accumulates gradients without synchronizing"):
        constraint.update(closure(model, ALL))
    model.set_requires_gradient_sync(True)
    assert all(map(torch.equal, whole(model), before))
    assert set(constraint.radii.values()) == {float("inf")}
    constraint.update(closure(model, ALL))
    agree(constraint)
    with pytest.raises(TypeError, match="shard with fully_shard"):
        TPGM(FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=True))
    flat = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"))
    for optimizer in (SGDP, AdamP, AdamSPD, DiGraP):
        with pytest.raises(TypeError, match=r"0 of the group: .* shard with fully_shard"):
            optimizer(flat.parameters())


@check
def fsdp_in_bfloat16(rank: int) -> None:
    model, anchor = start(lambda m: shard(m, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)))
    constraint = TPGM(model, anchor=anchor)
    mine = slice(rank, None, 2)
    train(model, mine, constraint)
    agree(constraint)
    plain, anchor = start()
    alone = single(plain, anchor=anchor)
    train(plain, ALL, alone)
    for name, radius in alone.radii.items():
        assert abs(constraint.radii[name] - radius) < 0.05 * radius + 1e-3, "float32 within bfloat16's precision"


@check
def tensor_parallel(rank: int) -> None:
    """Both processes see one batch; rows of the first layer and columns of the second are divided."""
    mesh = init_device_mesh("cpu", (2,))

    def run(divided: bool, norm: str) -> tuple[TPGM, list[Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))
        anchor = {name: 0.9 * p.detach() for name, p in model.named_parameters()}
        if divided:
            parallelize_module(model, mesh, {"1": ColwiseParallel(), "3": RowwiseParallel()})
        constraint = (TPGM if divided else single)(model, anchor=anchor, norm=norm)
        train(model, ALL, constraint, torch.optim.SGD(model.parameters(), lr=0.1, foreach=False))
        return constraint, whole(model)

    for norm in ("mars", "l2"):
        (ours, weights), (alone, expected) = run(True, norm), run(False, norm)
        agree(ours)
        close(ours.radii, alone.radii)
        near(weights, expected)


@check
def fsdp_of_a_tensor_parallel_layer(rank: int) -> None:
    """Either may be trivial; the other layers lie on a part of the mesh."""

    def wrap(model: nn.Module, shape: tuple[int, int]) -> nn.Module:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
        parallelize_module(model.head, mesh["tensor"], ColwiseParallel(output_layouts=Replicate()))
        return shard(model, mesh=mesh["data"])

    for norm in ("mars", "l2"):
        as_one_process(rank, lambda m: wrap(m, (2, 1)), norm=norm)
    model = wrap(start()[0], (1, 2))
    with pytest.raises(TypeError, match="only Shard and Replicate are supported"):
        TPGM(model)
    with pytest.raises(TypeError, match=r"head.weight is laid out .* only Shard and Replicate are supported"):
        AdamP(model.named_parameters())


OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (SGDP, {"lr": 0.1}),
    (SGDP, {"lr": 0.1, "momentum": 0.0, "nesterov": False, "norm": "l2", "kappa": 0.5}),
    (AdamP, {"lr": 1e-2, "weight_decay": 0.1}),
    (AdamP, {"lr": 1e-2, "norm": "l2"}),
    (AdamSPD, {"lr": 1e-2}),
    (DiGraP, {"lr": 3e-2}),
]


def learned(optimizer: Any) -> dict[str, float]:
    """What the optimizer learns of each tensor."""
    return getattr(optimizer, "radii", None) or getattr(optimizer, "omegas", {})


def optimized(model: nn.Module, optimizer: Any, anchor: Any, **settings: Any) -> Any:
    """The optimizer for the model, whose head is free."""
    named = [*model.named_parameters()]
    head = [(name, p) for name, p in named if name.startswith("head")]
    body = [(name, p) for name, p in named if not name.startswith("head")]
    groups = [{"params": body, "anchor": anchor}, {"params": head, "anchor": False}]
    return optimizer(groups, **settings)


def optimize_as_one_process(rank: int, wrap: Callable[[nn.Module], nn.Module], anchored: bool = True) -> None:
    """Half of each batch here, half there; and all of it alone."""
    for optimizer, settings in OPTIMIZERS:
        model, anchor = start(wrap)
        inner = getattr(model, "module", model)
        ours = optimized(inner, optimizer, anchor if anchored else None, **settings)
        train(model, slice(rank, None, 2), optimizer=ours)
        plain, _ = start()
        theirs = optimized(plain, optimizer, anchor if anchored else None, **settings)
        train(plain, ALL, optimizer=theirs)
        found: list[Any] = [None, None]
        dist.all_gather_object(found, (learned(ours), [w.tolist() for w in whole(model)]))
        assert found[0] == found[1]
        near(whole(model), whole(plain))
        assert learned(ours).keys() == learned(theirs).keys()
        for name, value in learned(theirs).items():
            assert abs(learned(ours)[name] - value) < 1e-6 + 1e-4 * abs(value), (optimizer, name)
        free, _ = start()
        train(free, ALL, optimizer=optimized(free, optimizer, False, **settings))
        apart = [float((a - b).abs().max()) for a, b in zip(whole(free), whole(plain), strict=True)]
        assert max(apart) > 1e-3, "the optimizer does what its base optimizer does not"


@check
def optimizers_under_ddp(rank: int) -> None:
    optimize_as_one_process(rank, DistributedDataParallel)


@check
def fsdp_optimizers(rank: int) -> None:
    optimize_as_one_process(rank, shard)
    optimize_as_one_process(rank, shard, anchored=False)


@check
def fsdp_optimizers_replicated(rank: int) -> None:
    for shape in ((2, 1), (1, 2)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("between", "inside"))
        optimize_as_one_process(rank, lambda m, mesh=mesh: shard(m, mesh=mesh))


@check
def fsdp_optimizers_keep_parts(rank: int) -> None:
    """Of an anchor, whole or sharded alike, and of all that has the parameters' shape; of the origin nothing."""
    for optimizer, settings in OPTIMIZERS:
        for given in (start()[1], dict(start(shard)[0].named_parameters())):
            model, _ = start(shard)
            ours = optimizer(model.named_parameters(), anchor=given, **settings)
            closure(model, ALL)().backward()
            ours.step()
            for p in model.parameters():
                alike = [value for value in ours.state[p].values() if value.shape == p.shape]
                assert {local(value).shape for value in alike} == {local(p.detach()).shape}
                assert local(ours.state[p]["anchor"]).untyped_storage().nbytes() == 4 * local(p.detach()).numel()
        model, _ = start(shard)
        ours = optimizer(model.named_parameters(), anchor="zero", **settings)
        zeros = [local(ours.state[p]["anchor"]) for p in model.parameters()]
        assert all(z.untyped_storage().nbytes() == 4 for z in zeros)
        train(model, slice(rank, None, 2), optimizer=ours)
        plain, _ = start()
        train(plain, ALL, optimizer=optimizer(plain.named_parameters(), anchor="zero", **settings))
        near(whole(model), whole(plain))


@check
def fsdp_optimizers_resume(rank: int, folder: Path) -> None:
    """Bit for bit, from the state as it is and by torch.distributed.checkpoint."""
    mine = slice(rank, None, 2)
    for i, (optimizer, settings) in enumerate(OPTIMIZERS):
        model, anchor = start(shard)
        ours = optimized(model, optimizer, anchor, **settings)
        train(model, mine, optimizer=ours)
        plain_state = copy.deepcopy(ours.state_dict())
        weights = [local(p.detach()).clone() for p in model.parameters()]
        checkpoint = dict(zip(("model", "optim"), get_state_dict(model, ours), strict=True))
        save(checkpoint, checkpoint_id=folder / str(i))
        train(model, mine, optimizer=ours)

        again, _ = start(shard)
        second = optimized(again, optimizer, None, **settings)
        with torch.no_grad():
            for p, w in zip(again.parameters(), weights, strict=True):
                local(p.data).copy_(w)
        second.load_state_dict(plain_state)
        train(again, mine, optimizer=second)
        assert all(map(torch.equal, whole(again), whole(model)))
        assert learned(second) == learned(ours)

        third, _ = start(shard)
        loaded = optimized(third, optimizer, None, **settings)
        parts = dict(zip(("model", "optim"), get_state_dict(third, loaded), strict=True))
        load(parts, checkpoint_id=folder / str(i))
        set_state_dict(third, loaded, model_state_dict=parts["model"], optim_state_dict=parts["optim"])
        train(third, mine, optimizer=loaded)
        assert all(map(torch.equal, whole(third), whole(model))), optimizer
        assert learned(loaded) == learned(ours)

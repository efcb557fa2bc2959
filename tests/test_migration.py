"""The migration tables of the pages: each row against the formula of the code or paper that it speaks of.

"Their" sides are plain float64 formulas of this project's own, written from papers and from reading the codes.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tpgm import TPGM
from tpgm.methods.l2_sp import l2_sp
from tpgm.methods.mars_penalty import mars_penalty
from tpgm.methods.mars_sp import project_fixed
from tpgm.optim import SGDP, AdamP, AdamSPD, DiGraP

BOOK = Path(__file__).resolve().parent.parent / "book"
Array = np.ndarray[Any, Any]
Check = Callable[[], None]
ROWS: list[tuple[str, str, Check]] = []  # table, how its first cell begins, check


def row(table: str, begins: str) -> Callable[[Check], Check]:
    def keep(check: Check) -> Check:
        ROWS.append((table, begins, check))
        return check

    return keep


def first_cells() -> Iterator[tuple[str, str]]:
    for page in ("optimizers.md", "use_it.md"):
        for table, lines in re.findall(
            r"<!-- migration (\S+) -->\n(.*?)<!-- end -->", (BOOK / page).read_text(encoding="utf8"), re.DOTALL
        ):
            for line in lines.strip().splitlines()[2:]:
                yield table, line.split(" | ")[0].removeprefix("| ")


def test_every_row_of_the_pages_has_a_check_and_every_check_a_row() -> None:
    cells, used = list(first_cells()), [0] * len(ROWS)
    assert len(cells) == 31
    for table, cell in cells:
        found = [i for i, (of, begins, _) in enumerate(ROWS) if of == table and cell.startswith(begins)]
        assert len(found) == 1, (table, cell)
        used[found[0]] += 1
    assert used == [1] * len(ROWS)


# --- their sides


class Problem:
    """A noisy quadratic, its goal now on one side of the start and now on the other; the gradients for both codes."""

    def __init__(self, shape: tuple[int, ...], steps: int = 60, period: int = 8) -> None:
        self.period = period
        draw = np.random.default_rng(0).normal
        self.start, self.c = draw(size=shape), np.abs(draw(size=shape)) + 0.2
        self.away = 0.3 * draw(size=shape)
        self.noise = draw(size=(steps, *shape))

    def gradient(self, w: Array, t: int) -> Array:
        found: Array = self.c * (w - self.start - (-1) ** (t // self.period) * self.away) + 0.3 * self.noise[t]
        return found

    def ours(self, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Array:
        p = nn.Parameter(torch.tensor(self.start))
        optimizer = make([p])
        for t in range(len(self.noise)):
            p.grad = torch.tensor(self.gradient(p.detach().numpy(), t))
            optimizer.step()
        return p.detach().numpy()


class TheirAdam:
    def __init__(self) -> None:
        self.t, self.m, self.v = 0, np.array(0.0), np.array(0.0)

    def __call__(self, g: Any) -> Any:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g * g
        return self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)


def their_ftp(problem: Problem, lr: float, k: float = 1.0, momentum: float | None = None) -> Array:
    """momentum: of Nesterov's SGD; None: Adam."""
    start, w, gamma, step, radius = problem.start, problem.start, 1e-8, TheirAdam(), TheirAdam()
    before: Array = np.zeros_like(start)
    velocity: Array = np.zeros_like(start)

    def norm(x: Array) -> Array:
        found: Array = np.abs(x).sum(axis=tuple(range(1, x.ndim)) if x.ndim > 1 else None, keepdims=True) + 1e-8
        return found

    for t in range(len(problem.noise)):
        g = problem.gradient(w, t)
        if momentum is None:
            direction = step(g)
        else:
            velocity = momentum * velocity + g
            direction = g + momentum * velocity
        moved = w - lr * direction - start
        slope = (g * before / norm(before)).sum()
        gamma = gamma - 1e-2 * radius(slope * k if slope > 0 else slope)
        gamma = 1e-8 if t == 0 else min(max(gamma, 1e-8), norm(moved).max())
        w, before = start + np.clip(gamma / norm(moved), 0, 1) * moved, moved
    return w


def their_spd(problem: Problem, lr: float, weight_decay: float, start: Array | None = None) -> Array:
    """Their weight_decay is λ."""
    w, step, anchor = problem.start, TheirAdam(), problem.start if start is None else start
    for t in range(len(problem.noise)):
        g = problem.gradient(w, t)
        new = w - lr * step(g)
        if -(g * (w - anchor)).sum() < 0:
            after, before = np.linalg.norm(new - anchor), np.linalg.norm(w - anchor)
            new = new - weight_decay * np.clip((after - before) / after, 0, 1) * (new - anchor)
        w = new
    return w


def their_digrap(problem: Problem, lr: float, mu: float) -> tuple[Array, list[float]]:
    start, w, omega, step, strength = problem.start, problem.start, 0.0, TheirAdam(), TheirAdam()
    before: Array = np.zeros_like(start)
    omegas = []

    def normalized(x: Array) -> Array:
        found: Array = x / np.maximum(np.sqrt((x * x).sum(axis=1, keepdims=True)), 1e-12)
        return found

    for t in range(len(problem.noise)):
        g, delta = problem.gradient(w, t), w - start
        omega = float(np.clip(omega - mu * strength((normalized(g) * normalized(before)).sum()), 0, 1))
        omegas.append(omega)
        before = (g * delta).sum() / ((delta * delta).sum() + 1e-8) * delta
        if (g * delta).sum() < 0:
            g = g - omega * (g * delta).sum() / (delta * delta).sum() * delta
        w = w - lr * step(g)
    return w, omegas


def equal(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def apart(ours: Any, theirs: Any) -> None:
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() > 1e-3


SHAPES: list[tuple[int, ...]] = [(4, 3), (5, 2, 3, 3), (7,), ()]

# --- FTP


@row("ftp", "A group holds the anchors as `pre`")
def _() -> None:
    p, anchor = nn.Parameter(torch.ones(3, 2)), torch.zeros(3, 2)
    for method in (SGDP, AdamP):
        for key, value in (("pre", [anchor]), ("name", ["w"])):
            with pytest.raises(ValueError, match=f"'{key}' is not supported"):
                method([{"params": [p], key: value}])
        optimizer = method([{"params": [("w", p)], "anchor": [anchor]}])
        assert torch.equal(optimizer.state[p]["anchor"], anchor)
        p.grad = torch.ones(3, 2)
        optimizer.step()
        assert list(optimizer.radii) == ["w"]


@row("ftp", "`k` multiplies positive slopes")
def _() -> None:
    problem = Problem((4, 3), steps=200)
    results = [their_ftp(problem, 0.05, k) for k in (1.0, 0.3)]
    apart(*results)
    for kappa, expected in zip((1.0, 0.3), results, strict=True):
        equal(problem.ours(lambda p, kappa=kappa: AdamP(p, lr=0.05, kappa=kappa)), expected)
    equal(
        problem.ours(lambda p: AdamP([{"params": p, "anchor": False}], lr=0.05)),
        problem.ours(lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0)),
    )
    for old in ({"k": 1.0}, {"exclude_set": {"w"}}):
        with pytest.raises(TypeError, match=r"is not supported: .*(kappa|anchor=False)"):
            SGDP([nn.Parameter(torch.zeros(2))], **old)


@row("ftp", "`SGDP` has momentum 0")
def _() -> None:
    signature = inspect.signature(SGDP)
    assert list(signature.parameters)[:5] == ["params", "lr", "momentum", "weight_decay", "nesterov"]
    problem = Problem((4, 3))
    equal(problem.ours(lambda p: SGDP(p, 0.1)), their_ftp(problem, 0.1, momentum=0.9))
    equal(problem.ours(lambda p: SGDP(p, 0.1, 0.0, nesterov=False)), their_ftp(problem, 0.1, momentum=0.0))
    apart(their_ftp(problem, 0.1, momentum=0.9), their_ftp(problem, 0.1, momentum=0.0))


@row("ftp", "`AdamP` has learning rate 1e-3")
def _() -> None:
    assert inspect.signature(AdamP).parameters["lr"].default == 1e-4


@row("ftp", "Row norms, the guard")
def _() -> None:
    for shape, lr in itertools.product(SHAPES, (0.05, 1e-7)):
        problem = Problem(shape)
        equal(problem.ours(lambda p, lr=lr: AdamP(p, lr=lr)), their_ftp(problem, lr))
        equal(problem.ours(lambda p, lr=lr: SGDP(p, lr=lr)), their_ftp(problem, lr, momentum=0.9))


@row("ftp", "All radii count their steps together")
def _() -> None:
    p, q = (nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(i))) for i in range(2))
    alone = nn.Parameter(p.detach().clone())
    both, one, start = AdamP([q, p], lr=0.1), AdamP([alone], lr=0.1), q.detach().clone()
    for t in range(6):
        p.grad = alone.grad = torch.full((3, 2), 1.0 + t)
        q.grad = torch.ones(3, 2) if t == 4 else None
        both.step()
        one.step()
        assert (q - start).abs().max() <= 1e-8  # its first step is the first of its radius
    assert torch.equal(p, alone)
    assert both.state[q]["step"] == 1


# --- SPD


@row("spd", "**`weight_decay` is $\\lambda$**")
def _() -> None:
    problem = Problem((4, 3))
    expected = their_spd(problem, 0.1, 0.7)
    equal(problem.ours(lambda p: AdamSPD(p, lr=0.1, strength=0.7)), expected)
    equal(problem.ours(lambda p: AdamSPD(p, lr=0.1)), their_spd(problem, 0.1, 1.0))
    equal(problem.ours(lambda p: AdamSPD(p, lr=0.1, strength=0.0)), their_spd(problem, 0.1, 0.0))
    apart(problem.ours(lambda p: AdamSPD(p, lr=0.1, weight_decay=0.7)), expected)
    equal(
        problem.ours(lambda p: AdamSPD(p, lr=0.1, weight_decay=0.7, strength=0.0)),
        problem.ours(lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.7)),
    )


@row("spd", "A group holds the anchors as `pre`; `pre=None`")
def _() -> None:
    problem = Problem((4, 3))
    for pre in ([torch.zeros(4, 3)], None):
        with pytest.raises(ValueError, match=r"'pre' is not supported: .*anchor='zero'.* is strength"):
            AdamSPD([{"params": [nn.Parameter(torch.zeros(4, 3))], "pre": pre}])
    expected = their_spd(problem, 0.1, 1.0, start=np.zeros((4, 3)))
    equal(problem.ours(lambda p: AdamSPD(p, lr=0.1, anchor="zero")), expected)
    equal(problem.ours(lambda p: AdamSPD([{"params": p, "anchor": [torch.zeros(4, 3)]}], lr=0.1)), expected)
    apart(expected, their_spd(problem, 0.1, 1.0))


@row("spd", "The condition and the ratio")
def _() -> None:
    for shape, strength in itertools.product(SHAPES, (0.5, 1.0, 2.5)):
        problem = Problem(shape)
        equal(problem.ours(lambda p, s=strength: AdamSPD(p, lr=0.05, strength=s)), their_spd(problem, 0.05, strength))
    apart(their_spd(Problem((4, 3)), 0.05, 1.0), their_spd(Problem((4, 3)), 0.05, 0.0))


# --- DiGraP


@row("digrap", "$\\omega$ starts at 0")
def _() -> None:
    for shape, mu in itertools.product([(4, 3), (5, 2, 3, 3), (3, 4, 2)], (0.5, 0.05)):
        problem = Problem(shape, period=1)
        expected, omegas = their_digrap(problem, 0.01, mu)
        assert omegas[:2] == [0, 0]
        assert max(omegas) > 0.1
        equal(problem.ours(lambda p, mu=mu: DiGraP(p, lr=0.01, omega_lr=mu)), expected)
        apart(expected, problem.ours(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)))


@row("digrap", "Tensors of fewer than two dimensions")
def _() -> None:
    with pytest.raises(IndexError):
        torch.nn.functional.normalize(torch.ones(3))
    vector, line = Problem((6,)), Problem((1, 6), period=1)
    vector.period, vector.start, vector.away, vector.c, vector.noise = (
        1,
        line.start[0],
        line.away[0],
        line.c[0],
        line.noise[:, 0],
    )
    equal(vector.ours(lambda p: DiGraP(p, lr=0.01)), their_digrap(line, 0.01, 0.5)[0][0])


@row("digrap", "$\\mu$ is 0.5")
def _() -> None:
    assert inspect.signature(DiGraP).parameters["omega_lr"].default == 0.5


@row("digrap", "`weight_decay` decays nothing")
def _() -> None:
    problem = Problem((4, 3), period=1)
    equal(problem.ours(lambda p: DiGraP(p, lr=0.01)), their_digrap(problem, 0.01, 0.5)[0])
    apart(problem.ours(lambda p: DiGraP(p, lr=0.01, weight_decay=0.5)), their_digrap(problem, 0.01, 0.5)[0])


@row("digrap", "The gradient is changed in place")
def _() -> None:
    p = nn.Parameter(torch.zeros(2, 3))
    optimizer = DiGraP([p], lr=0.1)
    for t in range(6):
        p.grad = torch.full((2, 3), (-1.0) ** t)
        before = p.grad.clone()
        optimizer.step()
        assert torch.equal(p.grad, before)
    assert optimizer.omegas["0"] > 0


# --- MARS


def moved(module: nn.Module) -> dict[str, Tensor]:
    """An anchor; the module moves away from it by a standard normal number each."""
    anchor = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return anchor


def their_ball(delta: Tensor, norms: Tensor, radius: float) -> Tensor:
    return delta / (norms / radius).clamp(min=1.0)


@row("mars", "Each output's row")
def _() -> None:
    for module in (nn.Linear(5, 3, bias=False), nn.Conv2d(4, 3, 3, bias=False)):
        anchor = moved(module)
        delta = module.weight.detach() - anchor["weight"]
        norms = delta.abs().flatten(1).sum(1).reshape(-1, *[1] * (delta.dim() - 1))
        radius = float(norms.median())
        project_fixed(module, anchor, radius)
        expected = anchor["weight"] + their_ball(delta, norms, radius)
        torch.testing.assert_close(module.weight.detach(), expected)


@row("mars", "A depthwise kernel is one row")
def _() -> None:
    module = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    anchor = moved(module)
    delta = module.weight.detach() - anchor["weight"]
    rows = delta.abs().sum(dim=(1, 2, 3), keepdim=True)
    project_fixed(module, anchor, 2.0)
    ours = module.weight.detach() - anchor["weight"]
    torch.testing.assert_close(ours, their_ball(delta, rows, 2.0))
    theirs = their_ball(delta, delta.abs().sum(), 2.0)
    assert ours.abs().sum() == pytest.approx(8.0, rel=1e-5)
    assert theirs.abs().sum() == pytest.approx(2.0, rel=1e-5)


@row("mars", "BatchNorm's scale is constrained number by number")
def _() -> None:
    found = []
    for deviation in (1.0, 3.0):
        module = nn.BatchNorm1d(4)
        anchor = moved(module)
        module.running_var.fill_(deviation**2)
        delta = module.weight.detach() - anchor["weight"]
        project_fixed(module, anchor, 0.5)
        ours = module.weight.detach() - anchor["weight"]
        torch.testing.assert_close(ours, their_ball(delta, delta.abs().sum(), 0.5))
        scaled = (delta + 1) / deviation - 1.0  # γ/σ − γ⁰/σ⁰ for γ⁰ = σ⁰ = 1
        theirs = (their_ball(scaled, scaled.abs(), 0.5) + 1) * deviation - 1
        apart(ours, theirs)
        found.append(ours)
        assert (module.bias - anchor["bias"]).abs().sum() <= 0.5001
    assert torch.equal(*found)


@row("mars", "Biases are free")
def _() -> None:
    module = nn.Linear(5, 3)
    anchor = moved(module)
    delta = module.bias.detach() - anchor["bias"]
    assert delta.abs().sum() > 0.5
    project_fixed(module, anchor, 0.5)
    torch.testing.assert_close(module.bias - anchor["bias"], their_ball(delta, delta.abs().sum(), 0.5))


@row("mars", "The new head is bounded around 0")
def _() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    anchor = {name: t for name, t in moved(model).items() if name.startswith("0.")}
    head = model[1].weight.detach().clone()
    project_fixed(model, anchor, 0.01)
    assert torch.equal(model[1].weight, head)
    norms = head.abs().sum(1, keepdim=True)
    apart(head, their_ball(head, norms, 0.5))


@row("mars", "The penalty with the Frobenius norm")
def _() -> None:
    module = nn.Linear(5, 3, bias=False)
    anchor = moved(module)
    delta = module.weight.detach() - anchor["weight"]
    torch.testing.assert_close(mars_penalty(module, anchor, 0.3, "l2").detach(), 0.3 * delta.square().sum().sqrt())
    apart(mars_penalty(module, anchor, 0.3, "l2").detach(), 0.3 * delta.square().sum())
    torch.testing.assert_close(mars_penalty(module, anchor, 0.3).detach(), 0.3 * delta.abs().sum(1).max())


# --- L2-SP


@row("l2-sp", "Kernels only")
def _() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    anchor = moved(model)
    kernel = 0.5 * 0.7 * (model[0].weight - anchor["0.weight"]).square().sum()
    rest = sum(0.5 * 0.7 * (p - anchor[n]).square().sum() for n, p in model.named_parameters() if n != "0.weight")
    torch.testing.assert_close(l2_sp(model, anchor, 0.7, 0.0), kernel + rest)
    apart(l2_sp(model, anchor, 0.7, 0.0).detach(), kernel.detach())


@row("l2-sp", "`weight_decay_rate` and `weight_decay_rate2`")
def _() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    anchor = {"0.weight": moved(model)["0.weight"]}
    theirs = 0.7 * (model[0].weight - anchor["0.weight"]).square().sum() / 2 + 0.2 * model[1].weight.square().sum() / 2
    torch.testing.assert_close(l2_sp(model, anchor, 0.7, 0.2), theirs)


# --- TPGM


def held(delta: Tensor, loss: Callable[[nn.Module], Tensor], **settings: Any) -> tuple[nn.Module, TPGM]:
    """A module of one tensor that has moved by `delta`, after one update."""
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros_like(delta))
    constraint = TPGM(module, **settings)
    with torch.no_grad():
        module.w.copy_(delta)
    constraint.update(lambda: loss(module))
    return module, constraint


@row("tpgm", "Rows of the MARS norm are the first dimension")
def _() -> None:
    _, constraint = held(torch.tensor([1.0, -3.0]), lambda m: m.w.sum(), lr=0.0)
    assert constraint.radii["w"] == (1 + 3) / 2  # each number a row of its own: 0.5
    _, constraint = held(torch.tensor([[1.0, -3.0], [0.5, 0.5]]), lambda m: m.w.sum(), lr=0.0)
    assert constraint.radii["w"] == (0.5 + 0.5) / 2


@row("tpgm", "All radii start in the first update")
def _() -> None:
    with pytest.raises(ValueError, match="min_val"):
        torch.nn.functional.hardtanh(torch.tensor(0.0), 1e-8, 0.0)
    module, constraint = held(torch.zeros(2), lambda m: m.w.sum(), lr=0.0)
    assert constraint.radii["w"] == float("inf")
    with torch.no_grad():
        module.w.add_(1.0)
    constraint.project_()
    assert torch.equal(module.w, torch.ones(2))
    constraint.update(lambda: module.w.sum())
    assert constraint.radii["w"] == 1.0


@row("tpgm", "A radius above the largest row norm $n$ is set to it")
def _() -> None:
    def slope(n: float, dtype: torch.dtype) -> float:
        """Through the clamp of the ratio at γ = n."""
        norm = torch.tensor(n, dtype=dtype)
        gamma = norm.clone().requires_grad_()
        torch.nn.functional.hardtanh(gamma / (norm + 1e-8), 0, 1).backward()
        return float(gamma.grad)  # type: ignore[arg-type]

    assert [slope(n, torch.float32) for n in (0.25, 1.0, 1000.0)] == [0, 0, 0]
    assert slope(0.2, torch.float32) > 0
    assert all(slope(n, torch.float64) > 0 for n in (0.25, 1.0, 1000.0))
    for dtype in (torch.float32, torch.float64):  # the loss falls with the radius
        _, constraint = held(torch.tensor([1.0], dtype=dtype), lambda m: m.w.sum(), start="largest", lr=0.1)
        assert constraint.radii["w"] == pytest.approx(0.9, abs=1e-6)
        _, constraint = held(torch.tensor([1.0], dtype=dtype), lambda m: -m.w.sum(), start="largest", lr=0.1)
        assert constraint._clipped(constraint._measure())[0] == 1.0


@row("tpgm", "The ViT code takes the L2 norm")
def _() -> None:
    assert inspect.signature(TPGM).parameters["norm"].default == "mars"
    _, constraint = held(torch.tensor([[3.0, 4.0]]), lambda m: m.w.sum(), norm="l2", lr=0.0)
    assert constraint.radii["w"] == 2.5


@row("tpgm", "The exclude list holds exact names")
def _() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert set(TPGM(model, exclude=["1.weight"]).radii) == {"0.weight", "0.bias", "1.bias"}
    assert set(TPGM(model, exclude=["1.*"]).radii) == {"0.weight", "0.bias"}
    with pytest.raises(ValueError, match="matches no parameter"):
        TPGM(model, exclude=["head.weight"])


@row("tpgm", "Every update copies the whole model")
def _() -> None:
    model = nn.Linear(3, 2)
    constraint, seen = TPGM(model, start="half-smallest"), []
    with torch.no_grad():
        model.weight.add_(torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))
    before = model.weight.detach().clone()

    def loss() -> Tensor:
        seen.append((model.weight, model.weight.detach().clone()))
        return model(torch.ones(3)).square().mean()  # no cross-entropy, no labels, no CUDA

    weight = model.weight
    constraint.update(loss)
    assert seen[0][0] is model.weight is weight
    assert not torch.equal(seen[0][1], before)
    assert torch.equal(model.weight, before)


@row("tpgm", "A radius belongs to a position")
def _() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    anchor = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    turned = TPGM(model, anchor=dict(reversed(anchor.items())))
    assert all(torch.equal(turned.anchor[name], tensor) for name, tensor in anchor.items())
    with pytest.raises(ValueError, match="anchor does not fit the model"):
        TPGM(model, anchor={f"{n}.": t for n, t in anchor.items()})


@row("tpgm", "Losses and norms that are not finite")
def _() -> None:
    module, constraint = held(torch.tensor([1.0, 2.0]), lambda m: m.w.sum())
    radii, weights = constraint.radii, module.w.detach().clone()
    with pytest.raises(FloatingPointError):
        constraint.update(lambda: module.w.sum() * float("nan"))
    assert constraint.radii == radii
    assert torch.equal(module.w, weights)
    with torch.no_grad():
        module.w[0] = float("inf")
    with pytest.raises(FloatingPointError):
        constraint.update(lambda: module.w.sum())
    assert constraint.radii == radii


@row("tpgm", "Nothing of it is saved")
def _() -> None:
    module, constraint = held(torch.tensor([1.0, 2.0]), lambda m: m.w.sum())
    state, later = copy.deepcopy(constraint.state_dict()), []
    again = TPGM(module, anchor={"w": torch.zeros(2)})
    again.load_state_dict(state)
    for each in (constraint, again):
        each.update(lambda: module.w.square().sum())
        later.append(each.radii)
    assert later[0] == later[1]


@pytest.mark.parametrize(("table", "begins", "check"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_row(table: str, begins: str, check: Check) -> None:
    check()

"""The optimizers do what their papers say: held to plain twins, to torch's own optimizers and to closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from tests.conftest import build
from tpgm import TPGM
from tpgm._engine import passes
from tpgm.book.plain import steps as reference
from tpgm.methods.mars_sp import project_fixed
from tpgm.optim import SGDP, AdamP, AdamSPD, DiGraP
from tpgm.projection import row_norms

TWINS: dict[type[torch.optim.Optimizer], Callable[..., list[Tensor]]] = {
    SGDP: reference.sgdp,
    AdamP: reference.adamp,
    AdamSPD: reference.adam_spd,
    DiGraP: reference.digrap,
}
RADII = [
    (SGDP, {"lr": 0.05, "norm": "mars"}),
    (SGDP, {"lr": 0.05, "norm": "l2", "kappa": 0.5, "nesterov": False, "weight_decay": 0.01}),
    (AdamP, {"lr": 3e-3, "norm": "mars", "kappa": 0.3, "weight_decay": 0.1, "radius_lr": 2e-3}),
    (AdamP, {"lr": 3e-3, "norm": "l2", "radius_lr": 3e-3}),
]
CASES = [
    *RADII,
    (AdamSPD, {"lr": 3e-3}),
    (AdamSPD, {"lr": 3e-3, "strength": 2.5, "weight_decay": 0.1, "betas": (0.8, 0.99)}),
    (DiGraP, {"lr": 3e-3, "omega_lr": 0.05}),
    (DiGraP, {"lr": 3e-3, "weight_decay": 0.1}),
]


@pytest.fixture(scope="module", autouse=True, params=["compiled", "torch's operations", "grouped"])
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds for each; "grouped" is how a GPU goes about it."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "WAY", {"torch's operations": "blocks"}.get(request.param, request.param))
        yield


EVERY = [(SGDP, {}), (AdamP, {}), (AdamSPD, {}), (DiGraP, {})]


def run(
    optimizer: torch.optim.Optimizer, params: list[Tensor], gradient: reference.Gradient, steps: int, first: int = 1
) -> None:
    """`steps` steps with the gradients that the twin would be given."""
    for t in range(first, first + steps):
        for p, g in zip(params, gradient([p.detach() for p in params], t), strict=True):
            p.grad = g
        optimizer.step()


def parameters(*tensors: Tensor) -> list[Tensor]:
    return [nn.Parameter(t.detach().clone()) for t in tensors]


def constant(*grads: Tensor) -> reference.Gradient:
    return lambda w, t: [g.clone() for g in grads]


# --- the twins


@pytest.mark.parametrize("kind", ["mlp", "conv", "transformer"])
@pytest.mark.parametrize(("method", "settings"), CASES)
def test_equals_its_twin_on_a_model(kind: str, method: Any, settings: dict[str, Any]) -> None:
    model, x, y = build(kind)
    model.eval()  # no dropout, BatchNorm with its running statistics
    # the gradient of a key's bias is 0 up to rounding; Adam would turn that noise into steps of full length
    named = {name: p for name, p in model.named_parameters() if "in_proj_bias" not in name}

    def gradient(weights: list[Tensor], t: int) -> list[Tensor]:
        batch = (7 * t + torch.arange(12)) % 24
        leaves = [w.detach().requires_grad_() for w in weights]
        output = functional_call(model, dict(zip(named, leaves, strict=True)), (x[batch],))
        return list(torch.autograd.grad(cross_entropy(output, y[batch]), leaves))

    start = [p.detach().clone() for p in named.values()]
    expected = TWINS[method](start, gradient, 50, **settings)
    params = list(named.values())
    optimizer = method(named.items(), **settings)
    run(optimizer, params, gradient, 50)
    if (method, settings) in RADII:
        assert min(optimizer.ratios().values()) < 1
    for name, p, w, s in zip(named, params, expected, start, strict=True):
        torch.testing.assert_close(p.detach(), w, atol=1e-6, rtol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        assert not torch.equal(p, s), name


shapes = st.lists(st.lists(st.integers(1, 4), max_size=4).map(tuple), min_size=1, max_size=4)


@given(
    shapes=shapes,
    case=st.sampled_from(CASES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_equals_its_twin_on_any_shapes(
    shapes: list[tuple[int, ...]], case: tuple[Any, dict[str, Any]], dtype: torch.dtype, seed: int
) -> None:
    method, settings = case
    generator = torch.Generator().manual_seed(seed)

    def draw() -> list[Tensor]:
        return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]

    start, target, curvature = draw(), draw(), [c.abs() for c in draw()]
    noise = [draw() for _ in range(20)]

    def gradient(weights: list[Tensor], t: int) -> list[Tensor]:
        parts = zip(weights, target, curvature, noise[t - 1], strict=True)
        return [c * (w - goal) + 0.1 * n for w, goal, c, n in parts]

    params = parameters(*start)
    run(method(params, **settings), params, gradient, 20)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for p, w in zip(params, TWINS[method](start, gradient, 20, **settings), strict=True):
        torch.testing.assert_close(p.detach(), w, atol=tolerance, rtol=tolerance)


# --- torch's own optimizers, where the constraint does not act


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: SGDP(p, lr=0.1, anchor=False), {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (
            lambda p: SGDP(p, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.1, anchor=False),
            {"lr": 0.1, "weight_decay": 0.1},
        ),
        (lambda p: AdamP(p, lr=0.01, weight_decay=0.1, anchor=False), {"lr": 0.01, "weight_decay": 0.1}),
        (lambda p: AdamSPD(p, lr=0.01, weight_decay=0.1, anchor=False), {"lr": 0.01, "weight_decay": 0.1}),
        (lambda p: AdamSPD(p, lr=0.01, weight_decay=0.1, strength=0.0), {"lr": 0.01, "weight_decay": 0.1}),
        (lambda p: DiGraP(p, lr=0.01, weight_decay=0.1, anchor=False), {"lr": 0.01, "weight_decay": 0.1}),
    ],
)
def test_without_a_constraint_it_is_the_base_optimizer(ours: Any, theirs: dict[str, Any]) -> None:
    start, grads = torch.randn(5, 7), torch.randn(30, 5, 7)
    (p,), (q,), (r,) = parameters(start), parameters(start), parameters(start)
    optimizer = ours([p])
    base = torch.optim.SGD if isinstance(optimizer, SGDP) else torch.optim.AdamW
    run(optimizer, [p], lambda w, t: [grads[t - 1]], 30)
    run(base([q], fused=True, **theirs), [q], lambda w, t: [grads[t - 1]], 30)
    run(base([r], foreach=False, **theirs), [r], lambda w, t: [grads[t - 1]], 30)
    assert torch.equal(p, q)
    torch.testing.assert_close(p, r, atol=1e-6, rtol=1e-6)


def test_spd_without_strength_is_adam() -> None:
    start, grads = torch.randn(5, 7), torch.randn(30, 5, 7)
    (p,), (q,) = parameters(start), parameters(start)
    run(AdamSPD([p], strength=0.0), [p], lambda w, t: [grads[t - 1]], 30)
    run(torch.optim.Adam([q], fused=True), [q], lambda w, t: [grads[t - 1]], 30)
    assert torch.equal(p, q)


def test_a_radius_that_may_grow_freely_leaves_sgd_after_the_first_step() -> None:
    """A huge step size and κ = 0: from the second step on the radius is the norm itself."""
    start, target = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    (p,), (q,) = parameters(start), parameters(start)
    run(SGDP([p], lr=0.01, kappa=0.0, norm="l2", radius_lr=1e9), [p], lambda w, t: [w[0] - target], 40)
    sgd = torch.optim.SGD([q], lr=0.0, momentum=0.9, nesterov=True)
    run(sgd, [q], lambda w, t: [w[0] - target], 1)
    sgd.param_groups[0]["lr"] = 0.01
    run(sgd, [q], lambda w, t: [w[0] - target], 39)
    # the first step ends 1e-8 from the anchor instead of on it
    torch.testing.assert_close(p, q, atol=2e-8, rtol=0)
    assert (p - start).norm() > 0.5


# --- FTP in closed form


@pytest.mark.parametrize(("method", "settings"), RADII)
def test_the_first_step_is_on_a_ball_of_radius_1e_8(method: Any, settings: dict[str, Any]) -> None:
    settings = {**settings, "weight_decay": 0.0}
    start, grad = torch.zeros(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    (p,) = parameters(start)
    optimizer = method([p], **settings)
    run(optimizer, [p], constant(grad), 1)
    norms = row_norms(p.detach(), settings["norm"])
    torch.testing.assert_close(norms, torch.full_like(norms, 1e-8), rtol=1e-5, atol=0)
    assert (p * grad).sum() < 0
    (q,) = parameters(torch.randn(4, 5))
    before = q.detach().clone()
    run(method([q], **settings), [q], constant(grad.float()), 1)
    torch.testing.assert_close(q.detach(), before, atol=1e-8, rtol=0)


@pytest.mark.parametrize("kappa", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("towards", [-1.0, 1.0])
def test_the_second_radius_by_hand(kappa: float, towards: float) -> None:
    """A linear loss on one row: Adam's moments after a slope of 0 and one of ±‖g‖ are known."""
    g = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    (p,) = parameters(torch.ones(1, 2, dtype=torch.float64))
    optimizer = SGDP([p], lr=1.0, momentum=0.0, nesterov=False, norm="l2", kappa=kappa, radius_lr=1e-2)
    run(optimizer, [p], constant(g), 1)
    optimizer.state[p]["radius"].fill_(0.5)  # room to shrink
    run(optimizer, [p], constant(-towards * g), 1)  # Δ' = −g, so the slope is towards · ‖g‖ · 5/(5 + 1e-8)
    slope = towards * 5.0 * 5.0 / (5.0 + 1e-8) * (kappa if towards > 0 else 1.0)
    mean, square = 0.1 * slope / (1 - 0.9**2), 0.001 * slope**2 / (1 - 0.999**2)
    expected = 0.5 - 1e-2 * mean / (square**0.5 + 1e-8)
    (radius,) = optimizer.radii.values()
    assert radius == pytest.approx(expected, rel=1e-12)
    assert (radius < 0.5) == (towards > 0 and kappa > 0)


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_at_kappa_0_no_gradient_tightens_a_radius(norm: str) -> None:
    target = torch.randn(6, 3)

    def tightened(kappa: float) -> int:
        """How often a radius shrank below both itself and the largest norm, the only other thing that lowers it."""
        (p,) = parameters(torch.zeros(6, 3))
        optimizer = SGDP([p], lr=0.3, kappa=kappa, norm=norm, radius_lr=0.1)
        count, last = 0, 0.0
        for t in range(1, 61):
            run(optimizer, [p], lambda w, t: [w[0] - target * (1 if t < 30 else 0.1)], 1, first=t)
            radius, largest = optimizer.radii["0"], optimizer.state[p]["norms"].max().item()
            count += radius < min(last, largest) - 1e-7
            last = radius
        return count

    assert tightened(0.0) == 0
    assert tightened(1.0) > 0


@pytest.mark.parametrize(("method", "settings"), RADII)
def test_weights_stay_in_their_radii_and_radii_in_their_bounds(method: Any, settings: dict[str, Any]) -> None:
    start, target = torch.randn(6, 3), torch.randn(6, 3)
    (p,) = parameters(start)
    optimizer = method([p], **settings)
    for t in range(1, 41):
        run(optimizer, [p], lambda w, t: [w[0] - target], 1, first=t)
        radius, unconstrained = optimizer.radii["0"], optimizer.state[p]["norms"]
        assert 1e-8 * 0.999 <= radius <= unconstrained.max().item() + 1.001e-8
        assert row_norms(p.detach() - start, settings["norm"]).max() <= radius + 1e-5
    ratio = optimizer.ratios()["0"]
    assert ratio == pytest.approx((radius / (unconstrained + 1e-8)).clamp(0, 1).mean().item(), rel=1e-6)
    assert 0 < ratio < 1


@pytest.mark.parametrize("kappa", [0.0, 1.0])
@pytest.mark.parametrize(
    ("method", "norm", "shape", "dtype"),
    [
        (AdamP, "mars", (), torch.float64),
        (AdamP, "mars", (8, 9), torch.float64),
        (AdamP, "l2", (8, 9), torch.float32),
        (SGDP, "mars", (3, 2, 2), torch.float64),
    ],
)
def test_a_radius_at_its_upper_end_takes_nothing_from_a_step(
    method: Any, norm: Any, shape: tuple[int, ...], dtype: torch.dtype, kappa: float
) -> None:
    """All steps but the first, which ends 1e-8 from the anchor, are the base optimizer's, however small they are."""
    lr = 1e-7 if method is AdamP else 1e-9
    (p,), (q,) = parameters(torch.zeros(shape, dtype=dtype)), parameters(torch.zeros(shape, dtype=dtype))
    run(method([p], lr=lr, norm=norm, kappa=kappa), [p], lambda w, t: [2 * (w[0] - 1)], 300)
    if method is AdamP:
        base: torch.optim.Optimizer = torch.optim.AdamW([q], lr=lr, weight_decay=0.0)
    else:
        base = torch.optim.SGD([q], lr=lr, momentum=0.9, nesterov=True)
    run(base, [q], lambda w, t: [2 * (w[0] - 1)], 1)
    first = q.detach().clone()
    run(base, [q], lambda w, t: [2 * (w[0] - 1)], 299)
    n = row_norms(first, norm).max()
    torch.testing.assert_close(p.detach(), q.detach() - first + 1e-8 / (n + 1e-8) * first, rtol=2e-6, atol=0)
    if shape == ():
        assert p.item() == pytest.approx(2.99e-5, abs=1e-7)  # 2.69e-5 with the end at max n


def test_a_ratio_of_1_leaves_the_weights_bit_for_bit_everywhere() -> None:
    """SPD without growth, a fixed radius that is large enough, and one of TPGM's that is not in force yet."""
    start, grad = torch.randn(5, 4), torch.randn(5, 4)
    (p,), (q,) = parameters(start), parameters(start)
    for step in range(4):  # away at first; then back, which brings the tensor nearer: no growth to take back
        for weight, optimizer in ((p, AdamSPD([p], lr=1e-7)), (q, torch.optim.AdamW([q], lr=1e-7, weight_decay=0.0))):
            run(optimizer, [weight], constant(-grad if step < 3 else grad), 1)
    assert torch.equal(p, q)
    model = nn.Linear(4, 5)
    constraint = TPGM(model)
    for radius in (math.inf, 1.0):
        with torch.no_grad():
            model.weight.add_(1e-6 * grad)
        before = model.weight.detach().clone()
        with pytest.warns(UserWarning, match="there are no radii yet"):
            constraint.project_()
        project_fixed(model, constraint.anchor, radius)
        assert torch.equal(model.weight, before)


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_tpgm_keeps_the_published_end_of_the_radius(norm: Any) -> None:
    """There, unlike in FTP, the radius ends at max n: a projection takes γ = max n back by at most 1e-8."""
    model = nn.Linear(3, 4, bias=False).double()
    constraint = TPGM(model, norm=norm, start="largest", lr=0.0)
    with torch.no_grad():
        model.weight.add_(1e-6 * torch.randn(4, 3, dtype=torch.float64))
    delta = model.weight.detach() - constraint.anchor["weight"]
    constraint.update(lambda: model(torch.ones(3, dtype=torch.float64)).sum())
    constraint.project_()
    n = row_norms(delta, norm)
    expected = (n.max() / (n + 1e-8)).clamp(max=1)
    left = row_norms(model.weight.detach() - constraint.anchor["weight"], norm)
    torch.testing.assert_close(left, n * expected, rtol=1e-8, atol=0)
    assert 0 < (n - left).max() < 1.0001e-8


# --- SPD and DiGraP in closed form


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_spd_takes_back_the_growth_that_the_gradient_did_not_ask_for(strength: float) -> None:
    start = torch.randn(4, 5, dtype=torch.float64)
    away = torch.randn(4, 5, dtype=torch.float64)
    results = {}
    for value in (0.0, strength):
        (p,) = parameters(start)
        optimizer = AdamSPD([p], lr=0.1, strength=value)
        run(optimizer, [p], constant(-away), 5)
        before = (p.detach() - start).norm()
        run(optimizer, [p], constant(0.01 * away), 1)  # momentum still leads away, the gradient back
        results[value] = (before, (p.detach() - start).norm())
    # as Adam while the gradient leads away
    torch.testing.assert_close(results[0.0][0], results[strength][0], rtol=1e-12, atol=0)
    before, after = results[0.0]
    assert after > before
    torch.testing.assert_close(results[strength][1], after - strength * (after - before))


def test_spd_stands_distances_too_small_to_square() -> None:
    (p,) = parameters(torch.full((3,), 1e-30))
    run(AdamSPD([p], lr=0.0, anchor="zero"), [p], constant(torch.ones(3)), 2)
    assert torch.equal(p, torch.full((3,), 1e-30))


def test_digrap_removes_the_part_that_leads_away_and_only_that() -> None:
    torch.manual_seed(1)
    start, away = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    for sign, omega in itertools.product((-1.0, 1.0), (0.0, 0.3, 1.0)):
        (p,) = parameters(start)
        # with a huge eps and no averaging Adam is gradient descent with step size lr/eps = 1
        optimizer = DiGraP([p], lr=1e9, betas=(0.0, 0.0), eps=1e9, omega_lr=0.0)
        run(optimizer, [p], constant(away), 1)  # nothing has moved: a plain step
        torch.testing.assert_close(p.detach(), start - away, rtol=1e-7, atol=1e-7)
        optimizer.state[p]["omega"].fill_(omega)
        before, u = p.detach().clone(), (p.detach() - start) / (p.detach() - start).norm()
        g = torch.randn_like(away) + 3 * sign * u
        run(optimizer, [p], constant(g), 1)
        along, step = (g * u).sum(), p.detach() - before
        assert (along > 0) == (sign > 0)
        expected = -g if along > 0 else -(g - omega * along * u)
        torch.testing.assert_close(step, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (3,), (3, 1), (2, 3), (2, 3, 2, 2)])
def test_digraps_omega_by_hand(shape: tuple[int, ...]) -> None:
    """It starts at 0, falls while gradients keep their side of the anchor, in conflict or not, else it rises."""
    (p,) = parameters(torch.zeros(shape, dtype=torch.float64))
    optimizer = DiGraP([p], lr=1e-3, omega_lr=0.01)
    g = torch.rand(shape, dtype=torch.float64) + 0.5
    rows = 1 if len(shape) < 2 else g.numel() // shape[1]  # lines along dimension 1

    def after(*gradients: Tensor) -> float:
        for gradient in gradients:
            run(optimizer, [p], constant(gradient), 1)
        return optimizer.omegas["0"]

    assert after(g, g, g) == 0  # it cannot fall below: from the third step on the slope is positive
    state = optimizer.state[p]
    state["omega"].fill_(0.5)
    # a conflict before and none now: the component lies along Δ, whose rows are those of −g up to Adam's step
    first, second = state["omega_exp_avg"].item(), state["omega_exp_avg_sq"].item()
    u = torch.nn.functional.normalize(-p.detach().reshape(g.shape if g.dim() > 1 else (1, -1)), dim=1)
    now = torch.nn.functional.normalize(-g.reshape(u.shape), dim=1)
    slope = float((now * u).sum())
    assert -rows <= slope < 0
    first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
    expected = 0.5 - 0.01 * first / (1 - 0.9**4) / ((second / (1 - 0.999**4)) ** 0.5 + 1e-8)
    assert after(-g) == pytest.approx(expected, rel=1e-9)
    state["omega"].fill_(0.5)
    state["omega_exp_avg"].zero_()
    assert after(-g) < 0.5  # no conflict before and none now: the slope counts all the same
    state["omega"].fill_(0.5)
    state["omega_exp_avg"].zero_()
    assert after(g) > 0.5


# --- nothing has moved


@pytest.mark.parametrize("norm", ["l2", "mars"])
@pytest.mark.parametrize(("method", "settings"), EVERY)
def test_what_has_not_moved_stays_and_is_not_nan(method: Any, settings: dict[str, Any], norm: str) -> None:
    if method in (SGDP, AdamP):
        settings = {**settings, "norm": norm}
    rows = torch.randn(4, 3)
    start = [torch.randn(4, 3), rows, torch.zeros(()), torch.empty(0, 2), torch.empty(3, 0)]
    moving = torch.tensor([[1.0], [0.0], [1.0], [0.0]]).expand(4, 3)  # some rows have no gradient
    params = parameters(*start)
    grads = [torch.zeros(4, 3), moving, torch.zeros(()), torch.empty(0, 2), torch.empty(3, 0)]
    run(method(params, **settings), params, constant(*grads), 10)
    for i, (p, s) in enumerate(zip(params, start, strict=True)):
        assert p.isfinite().all()
        assert torch.equal(p, s) or i == 1
    assert torch.equal(params[1][1::2], rows[1::2])
    assert not torch.equal(params[1][::2], rows[::2])

"""What TPGM promises a training loop: what it leaves alone, what it works with, how it resumes, what it refuses."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DataParallel

from tests.conftest import build
from tpgm import TPGM, interpolate


def displaced(kind: str = "mlp", scale: float = 0.1) -> tuple[nn.Module, dict[str, Tensor], Callable[[], Tensor]]:
    """A model moved away from its anchor, the anchor, and a closure."""
    model, x, y = build(kind)
    anchor = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn_like(p))
    return model, anchor, lambda: cross_entropy(model(x), y)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same(state: dict[str, Tensor], model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


# --- what an update leaves alone


@pytest.mark.parametrize("kind", ["mlp", "conv", "transformer"])
def test_update_leaves_weights_buffers_gradients_and_modes(kind: str) -> None:
    model, anchor, closure = displaced(kind)
    model.train()
    model.get_submodule(next(name for name, _ in model.named_modules() if name)).eval()
    closure().backward()
    modes = [m.training for m in model.modules()]
    before, gradients = snapshot(model), [p.grad for p in model.parameters()]
    values = [g.clone() for g in gradients if g is not None]
    seen = []

    def recording() -> Tensor:
        seen.append([m.training for m in model.modules()])
        return closure()

    loss = TPGM(model, anchor=anchor, buffers="keep").update(recording)
    assert not any(seen[0])  # eval mode inside
    assert math.isfinite(loss)
    assert_same(before, model)
    assert [m.training for m in model.modules()] == modes
    for p, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert p.grad is gradient
        assert torch.equal(p.grad, value)


def test_the_closure_sees_the_projected_weights_and_so_does_projected() -> None:
    model, anchor, closure = displaced()
    tpgm = TPGM(model, anchor=anchor, norm="l2")
    inside: dict[str, Tensor] = {}
    tpgm.update(lambda: (inside.update(snapshot(model)), closure())[1])
    delta = {name: p.detach() - anchor[name] for name, p in model.named_parameters()}
    for name, d in delta.items():  # the start radius is half the norm
        torch.testing.assert_close(inside[name], anchor[name] + d / 2)
    before = snapshot(model)
    with tpgm.projected():
        during = snapshot(model)
    assert_same(before, model)
    tpgm.project_()
    assert_same(during, model)
    for name, d in delta.items():
        assert (model.get_parameter(name) - anchor[name]).norm() <= tpgm.radii[name] * (1 + 1e-6)
        assert tpgm.ratios()[name] == pytest.approx(tpgm.radii[name] / float(d.norm()), rel=1e-5)


def test_weights_come_back_when_the_closure_raises() -> None:
    model, anchor, _ = displaced()
    tpgm, before = TPGM(model, anchor=anchor), snapshot(model)
    with pytest.raises(KeyError):
        tpgm.update(lambda: {}["loss"])
    assert_same(before, model)
    assert set(tpgm.radii.values()) == {math.inf}


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_nan_raises_and_leaves_radii_and_weights(poison: str) -> None:
    model, anchor, closure = displaced()
    tpgm = TPGM(model, anchor=anchor)
    tpgm.update(closure)
    weights, radii, state = snapshot(model), tpgm.radii, copy.deepcopy(tpgm.optimizer.state_dict())

    def broken() -> Tensor:
        if poison == "loss":
            return closure() * math.nan
        return closure() + (model.get_parameter("0.bias") - model.get_parameter("0.bias")).sqrt().sum()

    with pytest.raises(FloatingPointError):
        tpgm.update(broken)
    assert_same(weights, model)
    assert tpgm.radii == radii
    assert torch.equal(tpgm.optimizer.state_dict()["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    tpgm.update(closure)  # and it goes on
    assert tpgm.radii != radii


def test_nan_weights_are_named() -> None:
    model, anchor, closure = displaced()
    tpgm = TPGM(model, anchor=anchor)
    tpgm.update(closure)
    radii = tpgm.radii
    with torch.no_grad():
        model.get_parameter("2.weight")[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"2\.weight"):
        tpgm.update(closure)
    with pytest.raises(FloatingPointError, match=r"2\.weight"):
        tpgm.project_()
    with pytest.raises(FloatingPointError, match=r"2\.weight"), tpgm.projected():
        pass
    assert tpgm.radii["2.weight"] == radii["2.weight"]


# --- parameters of every kind


def test_parameters_that_have_not_moved_or_get_no_gradient() -> None:
    model, x, y = build("mlp")
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    tpgm = TPGM(model)
    with torch.no_grad():
        model.get_parameter("0.weight").add_(0.1)
        model.get_parameter("unused").add_(0.5)

    def closure() -> Tensor:
        return cross_entropy(model(x), y)

    for _ in range(3):
        tpgm.update(closure)
    assert tpgm.radii["2.weight"] == math.inf  # has not moved
    assert tpgm.ratios()["2.weight"] == 1
    assert tpgm.radii["unused"] == pytest.approx(0.75)  # moved, no gradient: stays at its start
    with torch.no_grad():
        model.get_parameter("2.weight").add_(0.2)
    tpgm.project_()
    assert tpgm.radii["2.weight"] == math.inf  # waits for an update
    tpgm.update(closure)
    assert math.isfinite(tpgm.radii["2.weight"])


def test_rows_that_have_not_moved_do_no_harm() -> None:
    model = nn.Embedding(5, 3)
    tpgm = TPGM(model, tv=1.0, groups=[["*"]])
    with torch.no_grad():
        model.weight[:2] += 1.0
    for _ in range(3):
        tpgm.update(lambda: model(torch.tensor([0, 1])).square().sum())
    assert 1e-8 <= tpgm.radii["weight"] <= 3.0
    tpgm.project_()
    assert model.weight.isfinite().all()


def test_embedding_with_sparse_gradient() -> None:
    radii = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Embedding(5, 3, sparse=sparse)
        tpgm = TPGM(model)
        with torch.no_grad():
            model.weight += torch.randn(5, 3)
        tpgm.update(lambda m=model: m(torch.tensor([0, 1])).square().sum())
        radii.append(tpgm.radii["weight"])
    assert radii[0] == radii[1]


def test_frozen_skipped_excluded_left_alone_tied_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.body = nn.Linear(4, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight
            self.new = nn.Linear(4, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.new(self.body(self.embed(tokens))).sum() + self.head(self.body(self.embed(tokens))).sum()

    model = Tied()
    model.body.bias.requires_grad_(False)
    anchor = {name: t for name, t in copy.deepcopy(model.state_dict()).items() if not name.startswith("new")}
    del anchor["embed.weight"]  # an anchor may name a tied weight by any of its names
    tpgm = TPGM(model, anchor=anchor, exclude=["new.*"])
    assert set(tpgm.radii) == {"embed.weight", "body.weight"}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    left = {name: model.get_parameter(name).clone() for name in ("new.weight", "new.bias", "body.bias")}
    tpgm.update(lambda: model(torch.arange(7)))
    tpgm.project_()
    for name, tensor in left.items():
        assert torch.equal(model.get_parameter(name), tensor)
    assert model.head.weight is model.embed.weight
    assert set(TPGM(model, exclude=["head.*"]).radii) == {"body.weight", "new.weight", "new.bias"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_have_float32_radii(dtype: torch.dtype) -> None:
    model, anchor, _ = displaced()
    model.to(dtype)
    x = torch.randn(8, 6, dtype=dtype)
    tpgm = TPGM(model, anchor=anchor)
    tpgm.update(lambda: model(x).float().square().mean())
    tpgm.project_()
    assert all(r.dtype == torch.float32 for r in tpgm.state_dict()["radii"].values())
    assert all(p.dtype == dtype for p in model.parameters())
    assert all(math.isfinite(r) for r in tpgm.radii.values())


def test_radii_of_large_half_precision_tensors_do_not_overflow() -> None:
    model = nn.Linear(70_000, 1, bias=False).half()
    tpgm = TPGM(model, anchor={"weight": torch.zeros(1, 70_000)})
    with torch.no_grad():
        model.weight.fill_(2.0)  # the L1 norm, 140 000, is beyond float16
    tpgm.update(lambda: model.weight.float().square().mean())
    assert tpgm.ratios()["weight"] == pytest.approx(0.5, abs=1e-3)


def test_the_anchor_is_a_copy_and_follows_the_model() -> None:
    model, x, y = build("mlp")
    tpgm = TPGM(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    model.double()  # moved after construction
    tpgm.update(lambda: cross_entropy(model(x.double()), y))
    assert all(math.isfinite(r) for r in tpgm.radii.values())
    assert tpgm.anchor["0.weight"].dtype == torch.float64


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_norms_of_the_update_serve_the_projection_until_the_weights_move(norm) -> None:
    found = {}
    for unmoved in (False, True):
        torch.manual_seed(0)
        model, anchor, closure = displaced("conv")
        tpgm = TPGM(model, anchor=anchor, norm=norm)
        tpgm.update(closure)
        measured: list[int] = []
        measure = tpgm._measure
        tpgm._measure = lambda m=measure, seen=measured: (seen.append(1), m())[1]  # type: ignore[method-assign]
        tpgm.project_(unmoved=unmoved)
        assert bool(measured) is not unmoved
        found[unmoved] = snapshot(model)
        tpgm.project_(unmoved=unmoved)  # the projection itself has moved them
        assert measured
        measured.clear()
        tpgm.update(closure)
        measured.clear()
        torch.optim.SGD(model.parameters(), lr=0.1).step()  # no gradients: nothing moves
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        tpgm.project_(unmoved=unmoved)
        assert measured
    for name, tensor in found[True].items():
        assert torch.equal(tensor, found[False][name])


@pytest.mark.parametrize("kind", ["conv", "transformer"])
def test_memory_of_its_own_is_pointed_to_and_shared_memory_written_to(kind: str) -> None:
    """The same radii whether parameters are views of one flat tensor or lie each for itself; with and without copy."""
    radii = []
    for flat in (False, True):
        for keep in (True, False):
            torch.manual_seed(0)
            model, anchor, closure = displaced(kind)
            if flat:
                sizes = [p.numel() for p in model.parameters()]
                whole = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
                for p, piece in zip(model.parameters(), whole.split(sizes), strict=True):
                    p.data = piece.view(p.shape)
            tpgm = TPGM(model, anchor=anchor, keep_copy=keep)
            assert tpgm._exchange.own_memory() is not flat
            where = [p.data_ptr() for p in model.parameters()]
            for _ in range(3):
                tpgm.update(closure)
                tpgm.project_()
            assert [p.data_ptr() for p in model.parameters()] == where
            assert bool(tpgm._exchange.copies) is keep
            radii.append(tpgm.radii)
    assert radii[1:] == [radii[0]] * 3


def test_anchor_in_another_type_or_on_the_host() -> None:
    results = []
    for settings in ({}, {"anchor_dtype": torch.bfloat16}, {"anchor_device": "cpu"}):
        torch.manual_seed(0)
        model, x, y = build("mlp")
        with torch.no_grad():
            for p in model.parameters():  # exact in bfloat16: the same anchor then
                p.copy_(p.bfloat16())
        tpgm = TPGM(model, **settings)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        for _ in range(3):
            tpgm.update(lambda m=model, x=x, y=y: cross_entropy(m(x), y))
        tpgm.project_()
        results.append(tpgm.radii)
        half = settings.get("anchor_dtype", torch.float32)
        assert all(a.dtype == half for a in tpgm.anchor.values())
        again = TPGM(model, anchor=tpgm.anchor, **settings)
        again.load_state_dict(tpgm.state_dict())
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[2] == results[0]
    with pytest.raises(ValueError, match="anchor_dtype must be a floating-point type"):
        TPGM(model, anchor_dtype=torch.int8)


# --- wrappers


def test_radius_gradients_are_those_of_the_bare_model_under_any_wrapper() -> None:
    def radii(wrap: Callable[[nn.Module], nn.Module], construct_on_wrapper: bool) -> dict[str, float]:
        torch.manual_seed(0)
        model, anchor, _ = displaced("conv")
        _, x, y = build("conv")
        wrapped = wrap(model)
        tpgm = TPGM(wrapped if construct_on_wrapper else model, anchor=anchor, buffers="keep")
        wrapped.train()
        for _ in range(3):
            wrapped(x).sum().backward()
            tpgm.update(lambda: cross_entropy(wrapped(x), y))
            tpgm.project_()
        return tpgm.radii

    bare = radii(lambda m: m, True)
    for wrap in (DataParallel, lambda m: torch.compile(m, backend="aot_eager")):
        for on_wrapper in (True, False):
            assert radii(wrap, on_wrapper) == pytest.approx(bare, rel=1e-6)


def test_an_enclosing_autocast_does_not_serve_stale_weights() -> None:
    model, anchor, _ = displaced(scale=1.0)
    _, x, y = build("mlp")
    tpgm = TPGM(model, anchor=anchor)
    with torch.autocast("cpu", torch.bfloat16):
        unprojected = cross_entropy(model(x), y).item()  # fills autocast's cache of casts
        inside = tpgm.update(lambda: cross_entropy(model(x), y))
        again = cross_entropy(model(x), y).item()
    fresh = TPGM(model, anchor=anchor)

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(model(x), y)

    assert inside == pytest.approx(fresh.update(closure))
    assert again == unprojected
    assert inside != pytest.approx(unprojected, rel=1e-3)


# --- penalty and total variation do what they are for


def test_penalty_tightens_and_total_variation_evens_out() -> None:
    def train(updates: int, **settings: float) -> TPGM:
        torch.manual_seed(0)
        model, x, y = build("mlp")
        tpgm = TPGM(model, norm="l2", lr=2e-2, groups=[["*"]], **settings)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(50):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        for _ in range(updates):
            tpgm.update(lambda: cross_entropy(model(x), y))
        return tpgm

    def spread(tpgm: TPGM) -> float:
        values = list(tpgm.ratios().values())
        return sum(abs(a - b) for a, b in itertools.pairwise(values))

    plain, tight = train(200), train(200, penalty=1.0)
    assert sum(r**2 for r in tight.radii.values()) < 0.1 * sum(r**2 for r in plain.radii.values())
    # on the way, every radius grows by the same lr while the norms differ: the ratios drift apart
    assert spread(train(30, tv=1.0)) < 0.3 * spread(train(30))


# --- resume


@pytest.mark.parametrize("norm", ["l2", "mars"])
def test_resume_is_exact(norm) -> None:
    def run(stop: int | None) -> tuple[dict[str, Tensor], dict[str, float]]:
        torch.manual_seed(0)
        model, x, y = build("mlp")
        tpgm = TPGM(model, norm=norm)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(10):
            if step == stop:
                file = io.BytesIO()
                torch.save([m.state_dict() for m in (model, optimizer, tpgm)], file)
                file.seek(0)
                torch.manual_seed(0)
                model, *_ = build("mlp")
                tpgm = TPGM(model, norm=norm)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                for m, state in zip((model, optimizer, tpgm), torch.load(file, weights_only=True), strict=True):
                    m.load_state_dict(state)
            optimizer.zero_grad()
            cross_entropy(model(x[:12]), y[:12]).backward()
            optimizer.step()
            tpgm.update(lambda m=model: cross_entropy(m(x[12:]), y[12:]))
            tpgm.project_()
        return snapshot(model), tpgm.radii

    weights, radii = run(None)
    for stop in (1, 5):
        again, again_radii = run(stop)
        assert all(torch.equal(weights[name], again[name]) for name in weights)
        assert radii == again_radii


def test_state_is_independent_of_what_follows() -> None:
    model, anchor, closure = displaced()
    tpgm = TPGM(model, anchor=anchor)
    tpgm.update(closure)
    state = tpgm.state_dict()
    tpgm.update(closure)
    once, ratios = tpgm.radii, tpgm.ratios()
    tpgm.update(closure)
    tpgm.load_state_dict(state)
    tpgm.update(closure)
    assert tpgm.radii == once
    assert tpgm.ratios() == ratios


def test_ratios_are_part_of_the_state() -> None:
    model, anchor, closure = displaced()
    tpgm = TPGM(model, anchor=anchor)
    tpgm.update(closure)
    tpgm.project_()
    again = TPGM(model, anchor=anchor)
    again.load_state_dict(tpgm.state_dict())
    assert again.ratios() == tpgm.ratios()
    assert min(tpgm.ratios().values()) < 0.9  # of before the projection, not of the weights as they are now


def test_a_model_whose_only_child_is_called_module() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    model = Wrapped()
    assert set(TPGM(model).radii) == {"module.weight", "module.bias"}
    assert set(TPGM(model, anchor=snapshot(model)).radii) == {"module.weight", "module.bias"}


def test_radii_stay_positive() -> None:
    model, anchor, closure = displaced(scale=1e-3)
    tpgm = TPGM(model, anchor=anchor, lr=1.0)
    for _ in range(3):
        tpgm.update(closure)
        assert min(tpgm.radii.values()) >= 1e-8 * (1 - 1e-6)


def test_loading_another_state_is_refused_and_changes_nothing() -> None:
    model, anchor, closure = displaced()
    tpgm = TPGM(model, anchor=anchor)
    tpgm.update(closure)
    radii = tpgm.radii
    other, other_anchor, other_closure = displaced("conv")
    foreign = TPGM(other, anchor=other_anchor)
    foreign.update(other_closure)
    for state, message in [
        (foreign.state_dict(), "another model"),
        (TPGM(model, anchor=anchor, norm="l2").state_dict(), "norm 'l2'"),
        (TPGM(model).state_dict(), "another anchor"),
        (TPGM(model, anchor=anchor, exclude=["0.*"]).state_dict(), "another exclude"),
        ({**foreign.state_dict(), "radii": tpgm.state_dict()["radii"]}, "damaged"),
        ({"radii": {}}, "lacks anchor, norm, norms, optimizer"),
    ]:
        with pytest.raises(ValueError, match=message):
            tpgm.load_state_dict(state)
        assert tpgm.radii == radii


# --- bad input


def test_anchor_that_does_not_fit_is_described() -> None:
    model, *_ = build("mlp")
    state = model.state_dict()
    missing = {name: t for name, t in state.items() if name != "2.bias"}
    with pytest.raises(ValueError, match=r"lacks tensors:\s+2\.bias(.|\n)*exclude"):
        TPGM(model, anchor=missing)
    with pytest.raises(ValueError, match=r"does not have:\s+fc\.weight"):
        TPGM(model, anchor={**state, "fc.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"4\.weight: anchor \(9, 8\), model \(3, 8\)"):
        TPGM(model, anchor={**state, "4.weight": torch.zeros(9, 8)})
    with pytest.raises(ValueError, match="NaN"):
        TPGM(model, anchor={**state, "0.bias": torch.full((10,), math.nan)})
    with pytest.raises(ValueError, match="int64"):
        TPGM(model, anchor={**state, "0.bias": torch.zeros(10, dtype=torch.int64)})
    with pytest.raises(TypeError, match="state dict"):
        TPGM(model, anchor=[1, 2])  # type: ignore[arg-type]


def test_a_checkpoint_with_another_head_and_a_prefix_fits_once_the_head_is_excluded() -> None:
    model, *_ = build("mlp")
    state = {f"module.{name}": t for name, t in snapshot(model).items() if not name.startswith("4.")}
    tpgm = TPGM(model, anchor={**state, "module.fc.weight": torch.zeros(1000, 8)}, exclude=["4.*", "fc.*"])
    assert set(tpgm.radii) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"exclude": ["hed.*"]}, ValueError, r"exclude: pattern 'hed\.\*' matches no parameter"),
        ({"exclude": "4.*"}, TypeError, r"exclude=\['4\.\*'\]"),
        ({"norm": "linf"}, ValueError, "norm must be one of 'l2', 'mars', got 'linf'"),
        ({"unit": "row"}, ValueError, "unit must be one of 'norm', 'weight', got 'row'"),
        ({"start": "zero"}, ValueError, "start must be one of .*got 'zero'"),
        ({"lr": -1e-2}, ValueError, "lr must be"),
        ({"lr": math.nan}, ValueError, "lr must be"),
        ({"penalty": -1.0}, ValueError, "penalty must be"),
        ({"tv": math.inf}, ValueError, "tv must be"),
        ({"groups": [["layer9.*"]]}, ValueError, r"groups: pattern 'layer9\.\*'"),
        ({"exclude": ["*"]}, ValueError, "nothing to constrain"),
    ],
)
def test_bad_settings(settings: dict, error: type[Exception], message: str) -> None:
    model, *_ = build("mlp")
    with pytest.raises(error, match=message):
        TPGM(model, **settings)


def test_bad_closures() -> None:
    model, anchor, closure = displaced()
    tpgm, before = TPGM(model, anchor=anchor), snapshot(model)
    _, x, y = build("mlp")

    def without_gradient() -> Tensor:
        with torch.no_grad():
            return closure()

    def backward() -> Tensor:
        loss = closure()
        loss.backward()
        return loss

    elsewhere = nn.Linear(6, 3)
    for bad, error, message in [
        (lambda: 1.0, TypeError, "float"),
        (lambda: cross_entropy(model(x), y, reduction="none"), ValueError, r"shape \(24,\)"),
        (without_gradient, ValueError, "without gradient"),
        (backward, ValueError, r"called backward\(\)"),
        (lambda: cross_entropy(elsewhere(x), y), ValueError, "does not depend"),
    ]:
        with pytest.raises(error, match=message):
            tpgm.update(bad)
        assert_same(before, model)
        assert set(tpgm.radii.values()) == {math.inf}
        assert all(p.grad is None for p in model.parameters())


def test_projection_inside_projection_is_refused() -> None:
    model, anchor, closure = displaced()
    tpgm = TPGM(model, anchor=anchor)
    tpgm.update(closure)
    with tpgm.projected():
        for call in (tpgm.project_, lambda: tpgm.update(closure)):
            with pytest.raises(RuntimeError, match="already holds projected weights"):
                call()
    tpgm.update(closure)


def test_projecting_before_any_update_warns_and_does_nothing() -> None:
    model, anchor, _ = displaced()
    tpgm, before = TPGM(model, anchor=anchor), snapshot(model)
    with pytest.warns(UserWarning, match="before the first update"):
        tpgm.project_()
    assert_same(before, model)
    assert set(tpgm.ratios().values()) == {1.0}


def test_repr_tells_what_is_constrained() -> None:
    model, *_ = build("mlp")
    assert "4 tensors" in repr(TPGM(model, exclude=["4.*"]))


# --- an anchor in the model's own memory


@pytest.mark.parametrize("live", ["state dict", "module", "one view", "buffer"])
def test_an_anchor_in_the_models_own_memory_is_refused(live: str) -> None:
    model, *_ = build("conv")
    state = model.state_dict()
    flat = torch.cat([model.get_parameter("0.weight").detach().reshape(-1), torch.zeros(3)])
    model.get_parameter("0.weight").data = flat[:-3].view(5, 2, 3, 3)
    anchors = {
        "state dict": state,
        "module": model,
        "one view": {**snapshot(model), "0.weight": flat[:-3].view(5, 2, 3, 3)},
        "buffer": {**snapshot(model), "1.bias": model.get_buffer("1.running_mean")},
    }
    named = {"one view": r"\s+0\.weight", "buffer": r"\s+1\.bias"}.get(live, r"\s+\d\.\w+")
    for call in (lambda a: TPGM(model, anchor=a), lambda a: interpolate(model, a, 0.5)):
        with pytest.raises(ValueError, match=f"shares memory with the model.*:{named}(.|\n)*deepcopy.*clone"):
            call(anchors[live])
    TPGM(model, anchor=snapshot(model))
    TPGM(model, anchor=copy.deepcopy(model))


# --- frozen and unfrozen on the way


@pytest.mark.parametrize("how", ["frozen", "not in the loss", "frozen, penalty and total variation"])
@pytest.mark.parametrize("unit", ["norm", "weight"])
def test_without_gradient_no_step_of_the_radius(how: str, unit: str) -> None:
    """With Adam's momentum of earlier steps; the radius goes on later as if the steps between had not been."""
    model, anchor, closure = displaced()
    settings = {"penalty": 0.1, "tv": 0.1, "groups": [["*"]]} if "penalty" in how else {}
    tpgm = TPGM(model, anchor=anchor, unit=unit, lr=1e-2 if unit == "norm" else 2e-4, **settings)
    for _ in range(5):
        tpgm.update(closure)
    before, adam = tpgm.radii, copy.deepcopy(tpgm.optimizer.state_dict()["state"][0])
    first = model.get_parameter("0.weight")
    if how == "not in the loss":
        x = torch.randn(24, 10)
        bad = lambda: model[1:](x).square().mean()  # noqa: E731
    else:
        first.requires_grad_(False)
        model.get_parameter("0.bias").requires_grad_(False)
        bad = closure
    for _ in range(20):
        tpgm.update(bad)
    after, now = tpgm.radii, tpgm.optimizer.state_dict()["state"][0]
    for i, name in enumerate(after):
        still = name.startswith("0.")
        assert (after[name] == before[name]) is still, name
        for key in ("exp_avg", "exp_avg_sq"):
            assert bool(now[key][i] == adam[key][i]) is still
    first.requires_grad_(True)
    tpgm.update(closure)
    assert tpgm.radii["0.weight"] != before["0.weight"]


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_a_frozen_tensor_is_not_projected(norm: Any) -> None:
    model, anchor, closure = displaced()
    tpgm = TPGM(model, anchor=anchor, norm=norm)
    tpgm.update(closure)
    radii = tpgm.radii
    for name in ("0.weight", "2.bias"):
        model.get_parameter(name).requires_grad_(False)
    before = snapshot(model)
    seen: list[dict[str, Tensor]] = []
    with tpgm.projected():
        seen.append(snapshot(model))
    tpgm.update(lambda: (seen.append(snapshot(model)), closure())[1])
    tpgm.project_(unmoved=True)
    tpgm.project_()
    for state in (*seen, snapshot(model)):
        for name in before:
            assert torch.equal(state[name], before[name]) is (name in ("0.weight", "2.bias")), name
    assert tpgm.ratios()["0.weight"] == 1
    assert tpgm.radii["0.weight"] == radii["0.weight"]
    model.get_parameter("0.weight").requires_grad_(True)
    tpgm.project_()
    assert not torch.equal(snapshot(model)["0.weight"], before["0.weight"])


def test_what_is_unfrozen_later_is_named_once() -> None:
    model, x, y = build("mlp")
    for name in ("0.weight", "0.bias", "4.bias"):
        model.get_parameter(name).requires_grad_(False)
    tpgm = TPGM(model, exclude=["4.*"])
    with torch.no_grad():
        model.get_parameter("2.weight").add_(0.1)
    tpgm.update(lambda: cross_entropy(model(x), y))
    model.get_parameter("4.bias").requires_grad_(True)  # excluded
    tpgm.project_()
    model.get_parameter("0.weight").requires_grad_(True)
    with pytest.warns(UserWarning, match=r"unfrozen since.*: 0\.weight; to constrain.*anew"):
        tpgm.update(lambda: cross_entropy(model(x), y))
    tpgm.update(lambda: cross_entropy(model(x), y))
    model.get_parameter("0.bias").requires_grad_(True)
    with pytest.warns(UserWarning, match=r"unfrozen since.*: 0\.bias; to"):
        tpgm.project_()
    tpgm.project_()


# --- parameters that are others now


@pytest.mark.parametrize("how", ["assign", "layer", "parameter", "precision"])
def test_replaced_parameters_are_named(how: str) -> None:
    model, anchor, closure = displaced()
    tpgm = TPGM(model, anchor=anchor)
    tpgm.update(closure)
    if how == "assign":
        model.load_state_dict(snapshot(model), assign=True)
    elif how == "layer":
        model[0] = nn.Linear(6, 10)
    elif how == "parameter":
        model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    else:
        nn.utils.parametrizations.weight_norm(model[0])
    before = snapshot(model)
    message = r"no longer parameters of the model: 0\.weight.*construct TPGM anew"
    for call in (tpgm.project_, lambda: tpgm.update(closure), lambda: tpgm.projected().__enter__()):
        with pytest.raises(RuntimeError, match=message):
            call()
    assert_same(before, model)


# --- modules whose train() does something


class Merging(nn.Linear):
    """As LoRA layers do: in eval mode the update is part of the weight, in train mode beside it."""

    def __init__(self) -> None:
        super().__init__(6, 10)
        self.b, self.merged = nn.Parameter(torch.ones(10, 1)), False

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.b.data if mode else self.b.data
            self.merged = not mode
        return self


class Freezing(nn.Sequential):
    """As detectors do: its BatchNorm stays in eval mode."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self[0].eval()
        return self


def test_modules_are_put_back_by_their_own_train() -> None:
    torch.manual_seed(0)
    shared = Merging()
    body = nn.Sequential(shared, Freezing(nn.Dropout(), nn.Linear(10, 10)), nn.Linear(10, 3))
    # the second one sets the mode of a child that the first has, too
    model = nn.ModuleList([body, Freezing(nn.Dropout(), shared)])
    model.train()
    body[2].eval()
    model[1].training = False
    with torch.no_grad():
        shared.weight.copy_(shared.weight.mul(64).round() / 64)  # sums without rounding
    tpgm = TPGM(model, exclude=["0.0.*"])
    with torch.no_grad():
        body[2].weight.add_(0.1)
    modes, before = [m.training for m in model.modules()], snapshot(model)
    inside: list[bool] = []
    tpgm.update(lambda: (inside.append(shared.merged), body(torch.ones(4, 6)).square().mean())[1])
    assert inside == [True]
    assert not shared.merged
    assert [m.training for m in model.modules()] == modes
    assert_same(before, model)
    with pytest.raises(KeyError):
        tpgm.update(lambda: {}["loss"])
    assert not shared.merged
    assert [m.training for m in model.modules()] == modes


# --- numbers of another kind


@pytest.mark.parametrize("anchor", [None, "zero", "real"])
def test_complex_parameters_are_refused_on_every_path(anchor: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, dtype=torch.complex64))
    real = {name: t.real.clone() for name, t in model.state_dict().items()}
    given = real if anchor == "real" else anchor
    with pytest.raises(ValueError, match=r"1\.weight(.|\n)*complex64"):
        TPGM(model, anchor=given)
    with pytest.raises(ValueError, match=r"1\.weight(.|\n)*complex64"):
        interpolate(model, real, 0.5)
    TPGM(model, anchor=given, exclude=["1.*"])

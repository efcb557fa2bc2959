"""What the optimizers promise a training loop: anchors, groups, exact resume, mixed precision, and clear refusals."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler

from tests.conftest import build
from tpgm._engine import passes
from tpgm.optim import SGDP, AdamP, AdamSPD, DiGraP

METHODS = [SGDP, AdamP, AdamSPD, DiGraP]
every_method = pytest.mark.parametrize("method", METHODS)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: range) -> None:
    dtype = next(model.parameters()).dtype
    for t in steps:
        batch = (7 * t + torch.arange(12)) % 24
        optimizer.zero_grad()
        cross_entropy(model(x[batch].to(dtype)), y[batch]).backward()
        optimizer.step()


def grouped(method: Any, model: nn.Module, **settings: Any) -> Any:
    """The body anchored, the head free and faster."""
    *body, (weight, w), (bias, b) = model.named_parameters()
    head = {"params": [(weight, w), (bias, b)], "anchor": False, "lr": 0.05}
    return method([{"params": body}, head], lr=0.01, **settings)


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_equal_state(left: Any, right: Any) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, dict):
            assert_equal_state(value, right[key])
        else:
            assert torch.equal(value, right[key]), key
            assert value.dtype == right[key].dtype, key


# --- resume


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_resumes_bit_for_bit_through_a_file(method: Any, dtype: torch.dtype) -> None:
    model, x, y = build("mlp")
    model.to(dtype)
    optimizer = grouped(method, model)
    train(model, optimizer, x, y, range(7))
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, x, y, range(7, 15))

    other = build("mlp")[0].to(dtype)
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()  # another anchor, until the state is loaded
    resumed = grouped(method, other)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(other, resumed, x, y, range(7, 15))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    assert_equal_state(optimizer.state_dict()["state"], resumed.state_dict()["state"])


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested containers."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [t for v in inside for t in tensors(v)]


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_is_a_copy_and_both_go_on_alone(method: Any, dtype: torch.dtype) -> None:
    """Moments, anchors and scalars, containers in the state, and settings that are tensors."""

    def make() -> tuple[nn.Parameter, Any]:
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(4, 3, dtype=dtype))
        return p, method([p], lr=torch.tensor(0.1))

    def step(p: nn.Parameter, optimizer: Any, number: int) -> None:
        for t in range(number):
            p.grad = torch.full_like(p, 1.0 + t)
            optimizer.step()

    (p, first), (q, second), (r, alone) = make(), make(), make()
    for weight, optimizer in ((p, first), (r, alone)):
        step(weight, optimizer, 3)
    first.state[p]["kept"] = {"one": torch.ones(4, 3, dtype=dtype), "more": [torch.zeros(2, dtype=dtype)]}
    second.load_state_dict(first.state_dict())
    theirs = {t.untyped_storage().data_ptr() for t in tensors([first.state[p], first.param_groups[0]])}
    ours = {t.untyped_storage().data_ptr() for t in tensors([second.state[q], second.param_groups[0]])}
    assert len(theirs) > 5
    assert not theirs & ours
    with torch.no_grad():
        q.copy_(p)
    del first.state[p]["kept"], second.state[q]["kept"]
    before = through_a_file(second.state_dict())
    step(p, first, 2)
    first.param_groups[0]["lr"].mul_(2)
    assert_equal_state(before["state"], second.state_dict()["state"])
    assert second.param_groups[0]["lr"] == torch.tensor(0.1)
    step(q, second, 2)
    step(r, alone, 2)
    assert torch.equal(q, r)
    assert torch.equal(p, r)


@every_method
def test_another_models_state_is_refused(method: Any) -> None:
    state = method([nn.Parameter(torch.zeros(3, 2))]).state_dict()
    with pytest.raises(ValueError, match=r"parameter 0 is \(2, 3\), its anchor \(3, 2\)"):
        method([nn.Parameter(torch.zeros(2, 3))]).load_state_dict(state)
    del state["state"][0]["anchor"]
    with pytest.raises(ValueError, match="its anchor None"):
        method([nn.Parameter(torch.zeros(3, 2))]).load_state_dict(state)
    with pytest.raises(ValueError, match=f"not the state of a {method.__name__}"):
        method([nn.Parameter(torch.zeros(3, 2))]).load_state_dict(torch.optim.SGD([torch.zeros(3, 2)]).state_dict())


# --- anchors and groups


def anchors(optimizer: torch.optim.Optimizer) -> list[Tensor | None]:
    return [optimizer.state[p].get("anchor") for group in optimizer.param_groups for p in group["params"]]


@every_method
def test_the_default_anchor_is_a_copy_of_the_weights_at_construction(method: Any) -> None:
    p = nn.Parameter(torch.ones(3, 2))
    optimizer = method([p])
    with torch.no_grad():
        p.add_(1)
    assert torch.equal(anchors(optimizer)[0], torch.ones(3, 2))
    assert not anchors(optimizer)[0].requires_grad


@every_method
def test_anchors_by_order_by_name_and_by_group(method: Any) -> None:
    model, _, _ = build("mlp")
    other = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    wanted = list(other.values())
    by_order = method(model.parameters(), anchor=list(other.values()))
    by_generator = method(model.parameters(), anchor=(t for t in other.values()))
    by_name = method(model.named_parameters(), anchor={**other, "of.something.else": torch.zeros(1)})
    for optimizer in (by_order, by_generator, by_name):
        for found, tensor in zip(anchors(optimizer), wanted, strict=True):
            assert torch.equal(found, tensor)
            assert found.data_ptr() != tensor.data_ptr()
    first, *rest = model.parameters()
    optimizer = method([{"params": [first], "anchor": wanted[:1]}, {"params": rest, "anchor": False}])
    assert torch.equal(anchors(optimizer)[0], wanted[0])
    assert anchors(optimizer)[1:] == [None] * len(rest)
    assert not any(isinstance(v, Tensor) for group in optimizer.param_groups for k, v in group.items() if k != "params")
    assert not isinstance(by_name.defaults["anchor"], dict)


@every_method
def test_the_origin_as_anchor_takes_no_memory_and_acts_like_zeros(method: Any) -> None:
    p, q = (nn.Parameter(torch.full((30, 20), 0.3)) for _ in range(2))
    zero, zeros = method([p], anchor="zero"), method([q], anchor=[torch.zeros(30, 20)])
    grads = torch.randn(5, 30, 20)
    for g in grads:
        p.grad, q.grad = g.clone(), g.clone()
        zero.step()
        zeros.step()
        zero.load_state_dict(through_a_file(zero.state_dict()))
    torch.testing.assert_close(p, q, rtol=0, atol=1e-7)
    assert anchors(zero)[0].untyped_storage().nbytes() == 4


@every_method
def test_a_group_added_later_is_anchored_where_it_is_then(method: Any) -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((3,), 2.0))
    optimizer = method([first], anchor=[torch.zeros(2)])
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    assert torch.equal(anchors(optimizer)[1], torch.full((3,), 2.0))
    assert optimizer.param_groups[1]["lr"] == 0.5
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": -1.0})
    assert len(optimizer.param_groups) == 2


@every_method
def test_frozen_parameters_wait_and_keep_the_anchor_of_construction(method: Any) -> None:
    model, x, y = build("mlp")
    start = [p.detach().clone() for p in model.parameters()]
    frozen = model[0].weight
    frozen.requires_grad_(False)
    optimizer = method(model.parameters(), lr=0.01)
    train(model, optimizer, x, y, range(5))
    assert torch.equal(frozen, start[0])
    assert set(optimizer.state[frozen]) == {"anchor"}
    frozen.requires_grad_(True)
    train(model, optimizer, x, y, range(5, 15))
    assert not torch.equal(frozen, start[0])
    assert torch.equal(optimizer.state[frozen]["anchor"], start[0])
    assert optimizer.state[frozen]["step"] == 10


def test_a_model_with_a_free_head_keeps_its_body_close() -> None:
    moved = {}
    for anchor in (None, False):
        torch.manual_seed(0)
        model, x, y = build("conv")
        start = [p.detach().clone() for p in model.parameters()]
        optimizer = AdamP(model.named_parameters(), lr=0.01, anchor=anchor, radius_lr=1e-3)
        train(model, optimizer, x, y, range(30))
        moved[anchor] = sum((p - s).norm().item() for p, s in zip(model.parameters(), start, strict=True))
        if anchor is None:
            assert set(optimizer.radii) == set(optimizer.ratios()) == {name for name, _ in model.named_parameters()}
        else:
            assert optimizer.radii == {}
    assert 0 < moved[None] < 0.5 * moved[False]


# --- the training loop around it


@every_method
def test_a_closure_runs_once_with_gradients_on(method: Any) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = method([p], lr=0.1)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 3.0
    assert calls == [True]
    assert optimizer.step() is None


@every_method
def test_a_learning_rate_schedule_acts_as_on_torchs_optimizers(method: Any) -> None:
    p, q = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    optimizer = method([p], lr=0.1, anchor=False)
    if method is SGDP:
        base: torch.optim.Optimizer = torch.optim.SGD([q], lr=0.1, momentum=0.9, nesterov=True, fused=True)
    else:
        base = torch.optim.AdamW([q], lr=0.1, weight_decay=0.0, fused=True)
    schedules = [lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=20) for o in (optimizer, base)]
    for _ in range(20):
        p.grad, q.grad = 2 * p.detach(), 2 * q.detach()
        optimizer.step()
        base.step()
        for schedule in schedules[: 2 if _ < 19 else 0]:
            schedule.step()
    assert torch.equal(p, q)
    assert not torch.equal(p, torch.ones(5))


@every_method
def test_a_gradient_scaler_unscales_and_skips_overflow(method: Any) -> None:
    start = torch.randn(4, 3)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer, plain = method([p], lr=0.1), method([q], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for t in range(6):
        optimizer.zero_grad()
        loss = (p - 1).square().sum() if t != 3 else (p * torch.inf).sum()
        before = optimizer.state_dict()["state"][0].get("step", torch.zeros(())).clone()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if t == 3:
            assert torch.equal(optimizer.state[p]["step"], before)
        else:
            plain.zero_grad()
            (q - 1).square().sum().backward()
            plain.step()
    assert torch.equal(p, q)
    assert not torch.equal(p, start)


@every_method
def test_memory_layout_does_not_matter(method: Any) -> None:
    weight = torch.randn(4, 3, 2, 2)
    p, q = nn.Parameter(weight.clone()), nn.Parameter(weight.clone(memory_format=torch.channels_last))
    first, second = method([p], lr=0.1), method([q], lr=0.1)
    for g in torch.randn(8, 4, 3, 2, 2):
        p.grad, q.grad = g.clone(), g.clone(memory_format=torch.channels_last)
        first.step()
        second.step()
    torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)
    assert q.is_contiguous(memory_format=torch.channels_last)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_have_float32_norms(method: Any, dtype: torch.dtype) -> None:
    p, q = nn.Parameter(torch.zeros(2, 4000, dtype=dtype)), nn.Parameter(torch.zeros(2, 4000))
    half, single = method([p], lr=20.0), method([q], lr=20.0)
    pull = torch.linspace(1, 2, 8000).reshape(2, 4000).to(dtype)
    for _ in range(6):
        for optimizer, weight in ((half, p), (single, q)):
            weight.grad = pull.to(weight.dtype, copy=True)
            optimizer.step()
    assert p.dtype == dtype
    assert {half.state[p][name].dtype for name in method._wide} <= {torch.float32}
    if method in (SGDP, AdamP):
        assert torch.finfo(torch.float16).max < half.state[p]["norms"].min() < torch.inf
        assert 0 < half.radii["0"] < 1
    torch.testing.assert_close(p.float(), q.detach(), rtol=0.05, atol=0)


def test_parameters_of_several_dtypes_in_one_group() -> None:
    params = [nn.Parameter(torch.ones(3, 2, dtype=d)) for d in (torch.float32, torch.float64, torch.bfloat16)]
    for method in METHODS:
        optimizer = method(params, lr=0.1)
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        assert all(p.isfinite().all() for p in params)


# --- refusals


@every_method
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, "lr must be a finite number at least 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"weight_decay": float("inf")}, "weight_decay must be"),
        ({"anchor": "origin"}, "anchor must be None, False, 'zero'"),
        ({"anchor": [torch.zeros(2, 3)]}, r"must be floating point \(3, 2\)"),
        ({"anchor": [torch.zeros(3, 2, dtype=torch.int64)]}, "must be floating point"),
        ({"anchor": []}, "0 anchors for 1 parameters"),
        ({"anchor": {"w": torch.zeros(3, 2)}}, "named parameters"),
    ],
)
def test_bad_settings(method: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method([nn.Parameter(torch.zeros(3, 2))], **settings)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (SGDP, {"kappa": 1.1}, r"kappa must be a finite number between 0 and 1, got 1.1"),
        (AdamP, {"kappa": -0.1}, "kappa must be"),
        (SGDP, {"norm": "l1"}, "norm must be one of .*got 'l1'"),
        (AdamP, {"norm": "linf"}, "norm must be one of"),
        (AdamP, {"radius_lr": -1e-2}, "radius_lr must be"),
        (SGDP, {"momentum": -0.9}, "momentum must be"),
        (SGDP, {"momentum": 0.0}, "nesterov=False"),
        (AdamP, {"betas": (0.9, 1.0)}, "betas must be"),
        (AdamSPD, {"betas": (0.9,)}, "betas must be"),
        (DiGraP, {"eps": -1e-8}, "eps must be"),
        (AdamSPD, {"strength": -1.0}, "strength must be"),
        (DiGraP, {"omega_lr": float("nan")}, "omega_lr must be"),
    ],
)
def test_bad_settings_of_one_method(method: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method([nn.Parameter(torch.zeros(3, 2))], **settings)


@every_method
def test_bad_parameters_and_gradients(method: Any) -> None:
    w, b = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"the anchor lacks b; .* anchor=False"):
        method([("w", w), ("b", b)], anchor={"w": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="give each group its own"):
        method([{"params": [w]}, {"params": [b]}], anchor=[torch.zeros(3, 2)])
    with pytest.raises(ValueError, match="complex64"):
        method([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = method([w, embedding.weight], lr=0.1)
    w.grad = torch.ones_like(w)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step()
    assert torch.equal(w, torch.zeros(3, 2))


OPTIONS = {
    "amsgrad": True, "maximize": True, "foreach": True, "fused": False, "capturable": True, "differentiable": True,
    "dampening": 0.1, "pre": [torch.zeros(3, 2)], "name": ["w"], "k": 0.5, "exclude_set": {"w"}, "use_lora": True,
}  # fmt: skip
SAYS = {
    "maximize": "negate the loss", "pre": r"given as 'anchor'.*strength", "name": r"\(name, parameter\) pairs",
    "k": "called kappa", "exclude_set": "anchor=False", "use_lora": "anchor='zero'", "capturable": "CUDA graph",
}  # fmt: skip


@every_method
@pytest.mark.parametrize("key", OPTIONS)
def test_options_and_keys_of_other_codes_are_refused_with_a_cure(method: Any, key: str) -> None:
    p, says = nn.Parameter(torch.zeros(3, 2)), f"{method.__name__}.*'{key}' is not supported: .*{SAYS.get(key, '')}"
    with pytest.raises(TypeError, match=says):
        method([p], **{key: OPTIONS[key]})
    with pytest.raises(ValueError, match=says):
        method([{"params": [p], key: OPTIONS[key]}])
    optimizer = method([p])
    with pytest.raises(ValueError, match=says):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], key: OPTIONS[key]})
    assert len(optimizer.param_groups) == 1


@every_method
def test_unknown_settings_are_refused_with_the_nearest_known(method: Any) -> None:
    p = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(
        TypeError, match=r"'weight_deca' is not supported: did you mean 'weight_decay'\? known are anchor, "
    ):
        method([p], weight_deca=0.1)
    with pytest.raises(ValueError, match=r"'anchors' is not supported: did you mean 'anchor'\?"):
        method([{"params": [p], "anchors": [torch.zeros(3, 2)]}])
    with pytest.raises(ValueError, match="'lr_scale' is not supported: known are"):
        method([{"params": [p]}, {"params": [nn.Parameter(torch.zeros(2))], "lr_scale": 0.5}])


@every_method
def test_options_that_ask_for_what_is_done_are_taken(method: Any) -> None:
    """Those of another torch optimizer's groups, and what schedules and loggers put there."""
    p, q = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    off = {"foreach": None, "maximize": False, "capturable": False, "differentiable": False, "fused": None}
    plain, given = method([q], lr=0.1), method([{"params": [p], **off, "name": "body"}], lr=0.1, fused=True)
    for _ in range(3):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q)
        plain.step()
        given.step()
    assert torch.equal(p, q)
    resumed = method([{"params": [p], "initial_lr": 0.1}], lr=0.1)
    lr_scheduler.CosineAnnealingLR(resumed, 10, last_epoch=3)
    resumed.load_state_dict(through_a_file(given.state_dict()))
    assert resumed.param_groups[0]["name"] == "body"


# --- the book's page


def test_the_code_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parent.parent / "book" / "optimizers.md").read_text(encoding="utf8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "optimizers.md", "exec"), names)
    assert "body.weight" in capsys.readouterr().out


@pytest.mark.parametrize("method", [SGDP, AdamP, AdamSPD])
def test_launches_on_a_gpu_do_not_grow_with_the_number_of_tensors(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As there, tensors are laid end to end here; what acts on a whole list of them counts once."""
    monkeypatch.setattr(passes, "WAY", "grouped")

    def count(number: int) -> Counter[str]:
        start = [torch.randn(8, 4) for _ in range(number)]
        params = [nn.Parameter(s.clone()) for s in start]
        optimizer = method(params, lr=0.1)
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        for p, s in zip(params, start, strict=True):  # it leads back to the anchor: a CPU leaves no tensor out either
            p.grad = torch.randn_like(p) if method is not AdamSPD else p.detach() - s
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step()
        views = ("reshape", "view", "as_strided", "_reshape_alias", "narrow", "slice", "split", "unbind", "detach")
        inside = [e for e in profile.events() or [] if e.cpu_parent is not None and "Optimizer" in e.cpu_parent.name]
        names = [e.name.removeprefix("aten::") for e in inside]
        return Counter(name for name in names if not name.startswith(views))

    assert count(4)
    assert count(4) == count(64)

"""On a GPU everything computes what it computes on a CPU. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tpgm
from tests.small import SmallNet, small_data, small_start
from tpgm import methods
from tpgm.optim import SGDP, AdamP, AdamSPD, DiGraP
from tpgm.projection import NORMS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEPS = {"epochs": 1, "batch_size": 16, "lr": 1e-3}


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.set_default_device("cpu")


def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(net(x), y)


def close(on_gpu: nn.Module, on_cpu: nn.Module, within: float, but: str = "") -> None:
    theirs = on_cpu.state_dict()
    for name, tensor in on_gpu.state_dict().items():
        assert name == but or torch.allclose(tensor.cpu(), theirs[name], atol=within), name


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_fine_tunes_to_the_same_weights(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = small_start()
    start.model.dropout = nn.Identity()  # its random numbers are the device's
    settings: dict[str, Any] = {**STEPS, "head_epochs": 1}
    if "updates" in methods.options(method):
        settings["updates"] = 3
    if method == "partial":
        settings["train"] = ["conv.*"]
    on_gpu = tpgm.finetune(start, small_data(), method, progress=False, **settings)
    assert next(on_gpu.model.parameters()).is_cuda
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    on_cpu = tpgm.finetune(start, small_data(), method, progress=False, **settings)
    assert not next(on_cpu.model.parameters()).is_cuda
    # the gradient of a bias before batch statistics is zero but for rounding, which Adam makes a step of
    close(on_gpu.model, on_cpu.model, 1e-3, but="block.0.bias" if on_gpu.settings["batchnorm"] == "train" else "")
    assert on_gpu.ratios == pytest.approx(on_cpu.ratios, abs=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_radii_move_alike(norm: Any) -> None:
    found = []
    for device in ("cuda", "cpu"):
        torch.manual_seed(0)
        model = SmallNet().eval()
        anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))
        x, y = torch.randn(8, 3, 12, 12), torch.arange(8) % 3
        model, x, y = model.to(device), x.to(device), y.to(device)
        constraint = tpgm.TPGM(model, anchor=anchor, norm=norm)
        for _ in range(3):
            constraint.update(partial(loss, model, x, y))
        constraint.project_()
        found.append((constraint.radii, model))
    (gpu_radii, on_gpu), (cpu_radii, on_cpu) = found
    assert gpu_radii == pytest.approx(cpu_radii, rel=1e-4)
    close(on_gpu, on_cpu, 1e-5)


@pytest.mark.parametrize("kind", [AdamP, SGDP, AdamSPD, DiGraP])
def test_optimizers_step_alike(kind: Any) -> None:
    found = []
    for device in ("cuda", "cpu"):
        torch.manual_seed(0)
        model = SmallNet().eval()
        x, y = torch.randn(8, 3, 12, 12), torch.arange(8) % 3
        model, x, y = model.to(device), x.to(device), y.to(device)
        optimizer = kind([{"params": list(model.named_parameters())}], lr=1e-2)
        for _ in range(4):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        found.append(model)
    close(found[0], found[1], 1e-4)

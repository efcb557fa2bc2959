"""Machine code for the passes: held to torch's operations, the same with any cache, and never in the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tpgm import TPGM
from tpgm._engine.passes import Passes

pytest.importorskip("numba")

ROOT = Path(__file__).resolve().parent.parent
# rows shorter and longer than a piece, which has 2¹⁴ numbers; enough of them for several threads
SHAPES = ((900, 700), (6,), (4, 3, 3, 3), (), (5, 1), (3, 40_000), (1, 17), (50_001,))


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    machine = import_module("tpgm._engine.numba")
    monkeypatch.setattr(machine, "SHARE", 1 << 17)  # these tensors are then enough for several threads
    machine._table.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    assert len(machine._table(((900, 700), (1, 50_001)), request.param).shares) >= request.param
    yield request.param
    torch.set_num_threads(before)
    machine._table.cache_clear()


def drawn(seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_passes_over_pieces_and_threads(norm: Any, threads: int) -> None:
    weights, anchors, gradients = (drawn(seed, torch.float64) for seed in range(3))
    plain, fast = Passes(norm, "blocks"), Passes(norm, "compiled")
    ratios = [torch.rand_like(n) for n in plain.measure(weights, anchors)]
    outs, wanted = [torch.empty_like(w) for w in weights], [torch.empty_like(w) for w in weights]
    fast.scale(outs, weights, anchors, ratios)
    plain.scale(wanted, weights, anchors, ratios)
    torch.testing.assert_close(outs, wanted)
    torch.testing.assert_close(fast.measure(weights, anchors), plain.measure(weights, anchors))
    found = fast.dots(list(gradients), weights, anchors)
    torch.testing.assert_close(found, plain.dots(list(gradients), weights, anchors))


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_bits_depend_neither_on_threads_nor_on_who_else_computes(norm: Any, threads: int) -> None:
    weights, anchors = drawn(0, torch.float32), drawn(1, torch.float32)

    def work(_: int) -> list[Tensor]:
        return Passes(norm, "compiled").measure(weights, anchors)

    with ThreadPoolExecutor(3) as callers:
        many = list(callers.map(work, range(12)))
    torch.set_num_threads(1)
    alone = work(0)
    for found in many:
        assert all(map(torch.equal, found, alone))


@pytest.mark.parametrize("norm", ["mars", "l2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(norm: Any, value: float) -> None:
    weight, anchor = torch.randn(3, 50), torch.randn(3, 50)
    weight[1, 7] = value
    (norms,) = Passes(norm, "compiled").measure([weight], [anchor])
    assert norms.isfinite().tolist() == ([True, False, True] if norm == "mars" else [False])
    model = nn.Linear(3, 2)
    constraint = TPGM(model)
    with torch.no_grad():
        model.weight[0, 0] = value
    with pytest.raises(FloatingPointError, match="weights are NaN or infinite in weight"):
        constraint.update(lambda: model(torch.ones(3)).sum())


def test_small_displacements_have_a_norm() -> None:
    """Their squares would be 0 in float32."""
    weight = torch.full((4, 4), 1e-30)
    (norm,) = Passes("l2", "compiled").measure([weight], [torch.zeros(4, 4)])
    torch.testing.assert_close(norm, torch.tensor([4e-30]), rtol=1e-6, atol=0)


def test_only_the_passes_know_of_the_machine_code() -> None:
    sources = {path.name: path.read_text(encoding="utf8") for path in (ROOT / "tpgm").rglob("*.py")}
    assert [name for name, source in sources.items() if "_engine.numba" in source] == ["passes.py"]
    assert [name for name, source in sources.items() if re.search(r"(from|import) numba", source)] == ["numba.py"]


# --- in processes of their own

PASSES = """
import hashlib, os, sys, warnings, torch
from tpgm._engine import passes
from tpgm.optim import SGDP
if limit := os.environ.get("FILE_LIMIT"):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
torch.set_num_threads(2)
digest, generator = hashlib.sha256(), torch.Generator().manual_seed(0)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for dtype in (torch.float32, torch.float64):
        w, a, g = ([torch.randn(s, generator=generator, dtype=dtype) for s in ((61, 53), (7,), (333, 1201))]
                   for _ in range(3))
        for norm in ("mars", "l2"):
            run = passes.Passes(norm)
            norms = run.measure(w, a)
            outs = [torch.empty_like(t) for t in w]
            run.scale(outs, w, a, [torch.linspace(0, 1, len(n), dtype=dtype) for n in norms])
            params = [torch.nn.Parameter(t.clone()) for t in w]
            optimizer = SGDP(params, lr=0.1, norm=norm)
            for _ in range(3):
                for p, t in zip(params, g):
                    p.grad = p.detach() * t
                optimizer.step()
            for t in (*norms, *run.dots(g, w, a), *outs, *(p.detach() for p in params)):
                digest.update(t.numpy().tobytes())
if os.environ.get("FORK"):
    here = passes.Passes("mars").measure(w, a)
    if not (child := os.fork()):
        os._exit(0 if all(map(torch.equal, passes.Passes("mars").measure(w, a), here)) else 1)
    assert os.waitpid(child, 0)[1] == 0
print(passes.kernels() is not None, "numba" in sys.modules, len(said), digest.hexdigest())
for warning in said:
    print(warning.message, file=sys.stderr)
"""


def run(**environment: str) -> tuple[list[str], str]:
    """Whether there are kernels, whether numba is imported, number of warnings and a hash of the bits; warnings."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PASSES]  # of fork with threads
    settings = {**os.environ, **environment}
    done = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A cache that a first process has filled, and the bits which that process found."""
    folder = tmp_path_factory.mktemp("cache")
    found, _ = run(NUMBA_CACHE_DIR=str(folder))
    assert found[:3] == ["True", "True", "0"]
    return folder, found[3]


def copied(folder: Path, to: Path) -> list[Path]:
    """Files of a copy of the cache."""
    for path in folder.rglob("*.nb?"):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return sorted(to.rglob("*.nb?"))


@pytest.mark.parametrize("lost", ["nothing", "_dots-"])
def test_the_same_bits_from_a_cold_a_warm_and_a_partial_cache(
    lost: str, filled: tuple[Path, str], tmp_path: Path
) -> None:
    folder, bits = filled
    files = copied(folder, tmp_path)
    assert len(files) >= 9  # an index and two dtypes, for three kernels
    for path in files:
        if lost in path.name:
            path.unlink()
    found, _ = run(NUMBA_CACHE_DIR=str(tmp_path), FORK="1")  # a forked process finds them too
    assert found == ["True", "True", "0", bits]


@pytest.mark.parametrize("damage", ["cut short", "one index", "one code"])
def test_a_damaged_cache_leaves_torchs_operations_and_one_warning(
    damage: str, filled: tuple[Path, str], tmp_path: Path
) -> None:
    for path in copied(filled[0], tmp_path):
        content = path.read_bytes()
        if damage == "cut short" and path.suffix == ".nbc":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "one index" and path.suffix == ".nbi" and path.name.startswith("numba._dots"):
            path.write_bytes(bytes(255 - byte for byte in content))
        elif damage == "one code" and path.suffix == ".nbc" and path.name.startswith("numba._scale"):
            path.write_bytes(b"\0" * len(content))
    found, said = run(NUMBA_CACHE_DIR=str(tmp_path))
    assert found[::2][:2] == ["False", "1"]
    assert "torch's operations do the same" in said
    assert "NUMBA_CACHE_DIR" in said


@pytest.mark.parametrize("trouble", ["no folder", "full disk", "no compilation"])
def test_without_a_cache_or_a_compiler_torchs_operations_serve(trouble: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = {
        "no folder": {
            "NUMBA_CACHE_DIR": str(tmp_path / "file" / "cache"),
            "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
        },
        "full disk": {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "FILE_LIMIT": "1000"},
        "no compilation": {"NUMBA_DISABLE_JIT": "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
    }[trouble]
    found, said = run(**settings)
    assert found[::2][:2] == ["False", "1"], said
    assert "torch's operations do the same" in said


def test_switched_off() -> None:
    assert run(TPGM_COMPILED="0")[0][:3] == ["False", "False", "0"]

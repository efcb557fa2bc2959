"""The callbacks and the recipe for accelerate on two processes: the same radii on both, and an exact resume."""

from __future__ import annotations

import pytest
import torch.distributed as dist

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch was built without gloo", allow_module_level=True)

from tests import hosts, pair


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str | None]]:
    return pair.run("tests.hosts", tmp_path_factory.mktemp("hosts"))


@pytest.mark.parametrize("name", ["transformers", "lightning", "accelerate"])
def test_two_processes(name: str, found: dict[str, list[str | None]]) -> None:
    if name not in hosts.CHECKS:
        pytest.skip(f"needs {name}")
    pair.expect_nothing(found[name])

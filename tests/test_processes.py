"""Several processes: averaged or sharded, two of them take the step that one takes on the whole batch."""

from __future__ import annotations

import pytest
import torch.distributed as dist

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch was built without gloo", allow_module_level=True)

from tests import pair, processes


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str | None]]:
    return pair.run("tests.processes", tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", [*processes.CHECKS, *processes.SKIPPED])
def test_two_processes(name: str, found: dict[str, list[str | None]]) -> None:
    if name in processes.SKIPPED:
        pytest.skip(processes.SKIPPED[name])
    pair.expect_nothing(found[name])

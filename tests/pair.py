"""Two processes of a gloo group that run the checks of a module one after another, so that they start but once."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tpgm.files import write_aside


def run(module: str, folder: Path) -> dict[str, list[str | None]]:
    """Of each function in the module's CHECKS what went wrong in either process: "" nothing, None was not reached.

    The functions are given the rank, those with two parameters the folder too.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    with contextlib.suppress(mp.ProcessExitedException):  # what went wrong is in the files
        mp.spawn(_main, args=(module, port, str(folder)), nprocs=2)
    files = [folder / f"{rank}.json" for rank in range(2)]
    both = [json.loads(file.read_text(encoding="utf8")) if file.exists() else {} for file in files]
    return {name: [one.get(name) for one in both] for name in importlib.import_module(module).CHECKS}


def expect_nothing(found: list[str | None]) -> None:
    assert found == ["", ""], "\n".join("did not get here" if text is None else text for text in found)


def _main(rank: int, module: str, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2", GROUP_RANK="0", TORCHELASTIC_RUN_ID="tests",
    )  # fmt: skip
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found: dict[str, str] = {}
    for name, function in importlib.import_module(module).CHECKS.items():
        arguments = (rank, Path(folder))[: function.__code__.co_argcount]
        try:
            function(*arguments)
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()
        with write_aside(Path(folder, f"{rank}.json")) as aside:
            aside.write_text(json.dumps(found), encoding="utf8")
        if found[name]:
            os._exit(1)  # what the other process waits for will not come
    dist.destroy_process_group()

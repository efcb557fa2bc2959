"""What a sweep adds to a run: from handing it in to its row on disk, less the experiment itself.

    python benchmarks/sweep_overhead.py [RUNS]

One worker; the first run pays for the imports of the process that computes, so it is given apart.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from tpgm.book.sweep import Job, Store
from tpgm.book.sweep.cluster import connect
from tpgm.book.sweep.jobs import LOG
from tpgm.book.sweep.work import perform

TINY = {"source": "tiny", "train_per_class": 2, "val_per_class": 1, "size": 32, "method": "linear-probe"}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    overheads = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        began = time.perf_counter()
        with connect(None, 1, 1) as (client, threads, _):
            print(f"starting the worker: {time.perf_counter() - began:.2f} s, once for a sweep")
            for seed in range(count):
                job = Job.of_experiment({**TINY, "seed": seed, "settings": {"epochs": 1}})
                began = time.perf_counter()
                client.submit(perform, job, store.url, threads, 600.0, pure=False).result()
                seconds = time.perf_counter() - began
                # the log's last line: "done after 1.2 s", of the experiment alone
                itself = float((Path(folder) / job.name / LOG).read_text().split()[-2])
                overheads.append(seconds - itself)
    first, rest = overheads[0], overheads[1:]
    print(f"first run of a worker: {first:.2f} s over the experiment's own time")
    print(f"further runs: {max(rest):.2f} s at most, {sum(rest) / len(rest):.2f} s on average, of {len(rest)}")
    print(json.dumps({"first": first, "further": rest}))


if __name__ == "__main__":
    main()

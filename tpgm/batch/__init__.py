"""Many runs of notebooks or experiments: a grid, a folder of results, and Dask workers between them."""

from tpgm.batch.grid import Plan, read_grid
from tpgm.batch.jobs import Job
from tpgm.batch.notebooks import chapters, declared, find, run_notebook
from tpgm.batch.store import Store
from tpgm.batch.sweep import Summary, sweep

__all__ = [
    "Job",
    "Plan",
    "Store",
    "Summary",
    "chapters",
    "declared",
    "find",
    "read_grid",
    "run_notebook",
    "sweep",
]

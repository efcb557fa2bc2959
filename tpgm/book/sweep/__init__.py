"""Many runs of notebooks or experiments: a grid, a folder of results, and Dask workers between them."""

from tpgm.book.sweep.grid import Plan, read_grid
from tpgm.book.sweep.jobs import Job
from tpgm.book.sweep.notebooks import chapters, declared, find, run_notebook
from tpgm.book.sweep.running import SweepReport, sweep
from tpgm.book.sweep.store import Store

__all__ = [
    "Job",
    "Plan",
    "Store",
    "SweepReport",
    "chapters",
    "declared",
    "find",
    "read_grid",
    "run_notebook",
    "sweep",
]

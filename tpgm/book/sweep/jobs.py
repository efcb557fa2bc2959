"""One run of a sweep: what is computed, its name, and the computation."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tpgm.files import sealed, write_aside

# the files a computation leaves in its folder; of a good one ROW, of a bad one ERROR is there
JOB, ROW, NOTEBOOK, LOG, ERROR = "job.json", "row.json", "notebook.ipynb", "log.txt", "error.txt"
RECORD = "TPGM_RECORD"  # the file that tpgm.book.notebook.record adds to


@dataclass(frozen=True)
class Job:
    """A notebook with parameters, or a configuration of `tpgm.book.experiments.experiment` (then `notebook` is None).

    name: of the run: what it is, and a hash of all that decides its result: the text of the notebook's cells, every
    parameter, and the version of this package; not the files beside a notebook. parameters: checked JSON values, those
    given of a notebook and all of an experiment. source: the notebook's JSON text, so that a worker on another machine
    needs no file; beside: the folder whose files it may read, where there is one.
    """

    name: str
    parameters: dict[str, Any]
    notebook: str | None = None
    source: str | None = None
    beside: str | None = None

    @classmethod
    def of_experiment(cls, config: Mapping[str, Any]) -> Job:
        """Raises ValueError as `tpgm.book.experiments.experiment.resolve` does."""
        from tpgm.book.experiments import experiment

        full = experiment.resolve(config)
        digest = _digest("experiment", experiment.key(full))
        return cls(_name(f"{Path(full['model']).stem}-{full['method']}-s{full['seed']}", digest), full)

    @classmethod
    def of_notebook(cls, notebook: str | Path, parameters: Mapping[str, Any]) -> Job:
        """Raises ValueError as `tpgm.book.sweep.notebooks.checked` does, FileNotFoundError without such a notebook."""
        from tpgm.book.sweep.notebooks import beside, checked, find

        path = find(notebook)
        given, every = checked(path, parameters)
        source = path.read_text(encoding="utf8")
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(source)["cells"]]
        folder = beside(path)
        name = _name(path.stem, _digest(cells, every))
        return cls(name, given, path.stem, source, str(folder) if folder else None)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def _digest(*parts: Any) -> str:
    text = json.dumps([*parts, version("tpgm")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _name(prefix: str, digest: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', prefix)}-{digest}"


def compute(folder: Path) -> bool:
    """Do the job described in `folder`, leaving its files there; whether it went well."""
    job, began = Job(**json.loads((folder / JOB).read_text(encoding="utf8"))), time.perf_counter()
    try:
        row = _experiment(job) if job.notebook is None else _notebook(job, folder)
        with write_aside(folder / ROW) as aside:
            aside.write_text(sealed(json.dumps({"run": job.name, **row}, ensure_ascii=False)), encoding="utf8")
    except Exception as error:
        # papermill's message is the failing cell's own traceback
        own = type(error).__name__ == "PapermillExecutionError"
        (folder / ERROR).write_text(str(error) if own else traceback.format_exc(), encoding="utf8")
    good = not (folder / ERROR).exists()
    print(f"{'done' if good else 'failed'} after {time.perf_counter() - began:.1f} s")
    return good


def _experiment(job: Job) -> dict[str, Any]:
    from tpgm.book.experiments import experiment

    return experiment.run(job.parameters)


def _notebook(job: Job, folder: Path) -> dict[str, Any]:
    from tpgm.book.experiments.experiment import provenance
    from tpgm.book.sweep.notebooks import FAILED, checked, run_notebook

    source, record = folder / f"{job.notebook}.ipynb", folder / "record.jsonl"
    source.write_text(job.source or "", encoding="utf8")
    tempfile.tempdir = str(folder)  # so that nothing is left behind if this process is killed
    os.environ[RECORD] = str(record)
    os.environ.setdefault("TPGM_STATIC_SITE", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    try:
        seconds = run_notebook(source, folder / NOTEBOOK, job.parameters, beside=job.beside)
    finally:
        if (failed := (folder / NOTEBOOK).with_suffix(FAILED)).exists():
            failed.replace(folder / NOTEBOOK)
    lines = record.read_text(encoding="utf8").splitlines() if record.exists() else []
    return {
        "notebook": job.notebook,
        "parameters": checked(source, job.parameters)[1],
        "recorded": {name: value for line in lines for name, value in json.loads(line).items()},
        "seconds": round(seconds, 2),
        **provenance(),
    }

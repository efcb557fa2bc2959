"""Several methods on the same data under equal budgets: one table, one figure, and the best model kept."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from tpgm import check
from tpgm.data import DataSplits
from tpgm.files import make_folder, unsealed, write_aside
from tpgm.methods import Method, make, options
from tpgm.models.pretrained import Pretrained
from tpgm.names import in_figure, in_markdown
from tpgm.training.evaluate import Accuracy, mean_accuracy
from tpgm.training.loop import beginning, finetune
from tpgm.training.result import origin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("vanilla", "lp-ft", "one-ratio", "tpgm-end")
_OWN = ("val", "id_test")


@dataclass(frozen=True)
class FinishedRun:
    """One finished run. folder: of its result and, if it was kept, its model; accuracies: of "val", "id_test" and every
    OOD test; passes: over the training data, those of the head alone first; seconds: of training."""

    model: str
    method: str
    folder: Path
    accuracies: Mapping[str, Accuracy]
    passes: tuple[int, int]
    seconds: float

    @property
    def ood(self) -> float | None:
        """The mean over the OOD tests, in [0, 1]; None without any."""
        parts = {name: a for name, a in self.accuracies.items() if name not in _OWN}
        return mean_accuracy(parts) if parts else None


@dataclass(frozen=True)
class Compared:
    """What `compare` returns: the runs in the order given; failed: why others have no result, by model and method."""

    entries: tuple[FinishedRun, ...]
    failed: Mapping[str, str]

    @property
    def best(self) -> FinishedRun:
        """The run of the highest ID validation accuracy, the first of equals; tests have no say."""
        return max(self.entries, key=lambda entry: entry.accuracies["val"].value)

    @property
    def tests(self) -> list[str]:
        """The names of the data, ID validation first."""
        return list(self.entries[0].accuracies)

    def table(self) -> str:
        """Accuracies in per cent as a Markdown table, a column for each data set; the best run in bold."""
        head = ["model", "method", "ID val", "ID test", *map(in_markdown, self.tests[2:]), "OOD mean", "epochs", "s"]
        lines = [f"| {' | '.join(head)} |", f"|---|---|{'---:|' * (len(head) - 2)}"]
        for entry in self.entries:
            values = [a.value for a in entry.accuracies.values()] + [entry.ood]
            cells = ["" if v is None else f"{100 * v:.1f}" for v in values]
            name = f"**{entry.method}**" if entry is self.best else entry.method
            epochs = " + ".join(str(n) for n in entry.passes if n)
            lines.append(f"| {' | '.join([in_markdown(entry.model), name, *cells, epochs, f'{entry.seconds:.0f}'])} |")
        return "\n".join(lines)

    def csv(self) -> str:
        """The table as CSV: accuracies as shares with the ends of their 95 % intervals, and counts of images."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        of_test = ("", "_low", "_high", "_images")
        columns = [f"{name}{what}" for name in self.tests for what in of_test]
        writer.writerow(["model", "method", "best", *columns, "ood_mean", "head_epochs", "epochs", "seconds", "folder"])
        for e in self.entries:
            cells = [x for a in e.accuracies.values() for x in (a.value, *a.interval, a.total)]
            own = [e.ood, *e.passes, round(e.seconds, 2), e.folder.as_posix()]
            writer.writerow([e.model, e.method, int(e is self.best), *cells, *own])
        return text.getvalue()

    def figure(self) -> Figure:
        """Accuracy with its 95 % interval of every run, a panel for each test; the best run is marked by a square."""
        from matplotlib.figure import Figure

        names, several = self.tests[1:], len({e.model for e in self.entries}) > 1
        columns = min(4, len(names))
        rows = -(-len(names) // columns)
        high = 0.3 * len(self.entries) + 1.1
        figure = Figure(figsize=(2.2 + 2.4 * columns, rows * high), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        for axes, name in zip(panels.flat, names, strict=False):
            for at, entry in enumerate(self.entries):
                found = entry.accuracies[name]
                low, top = found.interval
                best = entry is self.best
                axes.plot([100 * low, 100 * top], [at, at], color="0.6", zorder=1)
                axes.plot(100 * found.value, at, "s" if best else "o", color="#D55E00" if best else "#0072B2")
            axes.set(title=in_figure("ID test" if name == "id_test" else name), xlabel="accuracy (%)")
            axes.grid(axis="x", alpha=0.4)
            axes.spines[["top", "right"]].set_visible(False)
        labels = [f"{e.model}, {e.method}" if several else e.method for e in self.entries]
        panels[0, 0].set_yticks(range(len(labels)), [in_figure(label) for label in labels])
        panels[0, 0].invert_yaxis()
        return figure


def compare(
    data: DataSplits,
    models: Iterable[str | Path | Pretrained] | str | Path | Pretrained = "efficientnet-lite0",
    methods: Iterable[str | Method] | Mapping[str, str | Method] = METHODS,
    *,
    out: str | Path,
    size: int | None = None,
    keep: Literal["best", "all"] = "best",
    store: str | Path | None = None,
    progress: bool = True,
    device: str | torch.device | None = None,
    command: str = "",
    own: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Compared:
    """Fine-tune each model by each method on the same data, and say which has the best ID validation accuracy.

    Budgets are equal: `settings` (``epochs=3, lr=1e-4, seed=1``) go to every method that has them, `own` to one
    (``{"tpgm-end": {"updates": 100}}``), and all others are at the methods' defaults, which agree in ``epochs``,
    ``batch_size`` and, apart from linear probing, ``lr``. A method that trains its head first (``head_epochs``) does so
    before its epochs; the table tells both numbers. models, size, device: as for `tpgm.finetune`. methods: names, or by
    label names and `tpgm.methods.Method` objects.

    out: a folder. ``runs/MODEL-METHOD`` hold the runs, ``comparison.csv``, ``.md``, ``.svg`` and ``.png`` what was
    found, ``best`` leads to the run of the best model. keep: "all" keeps the weights of every run, "best" deletes those
    of runs of this call as soon as they are behind. Stages that several methods begin with are computed once and kept
    in `store`, by default ``out/store``, which can be deleted afterwards. The same call goes on where it was
    interrupted, and runs only what is not finished; a run whose loss is not finite is left out with a warning.

    Raises ValueError for unknown models, methods or settings before anything is trained, and if `out` holds runs of
    other models, data or settings; RuntimeError if no run ends well; else what `tpgm.finetune` raises.
    """
    folder = check.path("out", out)
    check.choice("keep", keep, ("best", "all"))
    check.instance("data", data, DataSplits, "the DataSplits of tpgm.data, such as image_folder(…)")
    single = [models] if isinstance(models, str | Path | Pretrained) else list(models)
    given = list(methods.items() if isinstance(methods, Mapping) else ((_name(m), m) for m in methods))
    if len(dict(given)) != len(given):
        raise ValueError(f"methods name one twice ({', '.join(n for n, _ in given)}): give a mapping from labels")
    made = _made(dict(given), settings, own or {})
    if not (single and made):
        raise ValueError("models and methods must have at least one entry each")
    starts = {}
    for model in single:
        for label, method in made.items():
            start = beginning(model, data, size, method.seed)
            name = str(model) if isinstance(model, str | Path) else start.name
            starts[_folder_name(name, label)] = (name, label, model, origin(start, data), method)
    if len(starts) != len(single) * len(made):
        raise ValueError(f"models {', '.join(map(str, single))} share a name: give each one once")
    make_folder(folder / "runs")
    entries, fresh = list[FinishedRun](), list[FinishedRun]()
    failed: dict[str, str] = {}
    for number, (place, (name, label, model, about, method)) in enumerate(starts.items(), 1):
        run = folder / "runs" / place
        again = _finished(run, about, method)
        if not again:
            if progress:
                print(f"{number} of {len(starts)}: {name}, {label}", flush=True)
            try:
                finetune(
                    model,
                    data,
                    method,
                    out=run,
                    size=size,
                    progress=progress,
                    device=device,
                    store=store or folder / "store",
                    command=command,
                )
            except FloatingPointError as error:
                failed[f"{name}, {label}"] = str(error)
                warnings.warn(f"{name}, {label} is left out: {error}", stacklevel=3)
                continue
        entries.append(_entry(run, name, label))
        fresh += [] if again or keep == "all" else [entries[-1]]
        best = Compared(tuple(entries), {}).best
        for entry in fresh:
            if entry is not best:
                (entry.folder / "model.safetensors").unlink(missing_ok=True)
    if not entries:
        raise RuntimeError(f"no run ended well: {next(iter(failed.values()))}")
    found = Compared(tuple(entries), failed)
    _write(folder, found)
    return found


def _name(method: str | Method) -> str:
    return method if isinstance(method, str) else method.name


def _folder_name(model: str, label: str) -> str:
    """A folder's name for a run: letters, digits, dots and dashes."""
    stem = Path(model).stem if Path(model).suffix in (".safetensors", ".pth", ".pt") else model
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in f"{stem}-{label}").strip(".-")


def _made(
    methods: Mapping[str, str | Method], settings: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, Method]:
    """The methods by label. Raises ValueError for a label or setting that none has."""
    valid = {label: options(_name(method)) for label, method in methods.items()}
    for label in own:
        if label not in valid:
            raise ValueError(f"{label!r} has settings but is not compared; {check.hint(label, valid)}")
    for name in settings:
        if valid and not any(name in of for of in valid.values()):
            every = dict.fromkeys(n for of in valid.values() for n in of)
            raise ValueError(f"no method has the setting {name!r}; {check.hint(name, every)}")
    return {
        label: make(method, {**{n: v for n, v in settings.items() if n in valid[label]}, **own.get(label, {})})
        for label, method in methods.items()
    }


def _row(run: Path) -> dict[str, Any]:
    return unsealed((run / "result.json").read_bytes(), str(run / "result.json"))


def _finished(run: Path, about: Mapping[str, Any], method: Method) -> bool:
    """Whether this run is there. Raises ValueError if another one is in its place."""
    if not (run / "result.json").exists():
        return False
    row = _row(run)
    wanted = json.loads(json.dumps({**about, "method": method.name, "settings": method.settings}))
    if different := [f"the {name}" for name, value in wanted.items() if row.get(name) != value]:
        raise ValueError(f"{run} holds a run that differs in {' and '.join(different)}: choose another folder as out")
    return True


def _entry(run: Path, name: str, label: str) -> FinishedRun:
    row = _row(run)
    accuracies = {test: Accuracy(found["correct"], found["total"]) for test, found in row["accuracies"].items()}
    passes = (row["settings"]["head_epochs"], row["settings"]["epochs"])
    return FinishedRun(name, label, run, accuracies, passes, row["seconds"])


def _write(folder: Path, found: Compared) -> None:
    figure = found.figure()
    with write_aside(folder / "comparison.csv") as aside:
        aside.write_text(found.csv(), encoding="utf-8")
    with write_aside(folder / "comparison.md") as aside:
        aside.write_text(found.table() + "\n", encoding="utf-8")
    for kind in ("svg", "png"):
        with write_aside(folder / f"comparison.{kind}") as aside:
            figure.savefig(aside, format=kind, dpi=160)
    link, target = folder / "best", found.best.folder
    if link.is_symlink() or link.is_file():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    with suppress(OSError):
        link.symlink_to(os.path.relpath(target, folder), target_is_directory=True)
        return
    shutil.copytree(target, link)  # where links are not permitted

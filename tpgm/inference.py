"""A fine-tuned model in use: classes of new images, and accuracies on new folders without training again."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from torch import Tensor

from tpgm import check
from tpgm._engine.gradients import eval_mode
from tpgm.data.folders import Extra, images_in, labelled_folder
from tpgm.data.images import READERS, check_header, read_image, resize_and_crop
from tpgm.files import write_aside
from tpgm.models.architectures import need
from tpgm.models.loading import load
from tpgm.models.pretrained import Pretrained
from tpgm.names import in_figure, in_markdown
from tpgm.training.evaluate import Accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Model = Pretrained | str | Path


class ClassScore(NamedTuple):
    """A class's images, and its recall, precision (None if it was never answered) and F1, all in [0, 1]."""

    name: str
    images: int
    recall: float
    precision: float | None
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` finds on one folder.

    accuracy: with the confusion; class_names: of the model's C outputs; files: the N images; labels, found: (N,) int64,
    the folder's class and the model's; probability: (N,) float32 in [0, 1], of the class found.
    """

    accuracy: Accuracy
    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    labels: Tensor
    found: Tensor
    probability: Tensor

    def by_class(self) -> list[ClassScore]:
        """The scores of every class that the folder has."""
        answered = [sum(column) for column in zip(*self.accuracy.confusion, strict=True)]
        return [
            ClassScore(self.class_names[c], sum(row), row[c] / sum(row), row[c] / answered[c] if answered[c] else None,
                       2 * row[c] / (sum(row) + answered[c]))
            for c, row in enumerate(self.accuracy.confusion) if any(row)
        ]  # fmt: skip

    @property
    def macro_f1(self) -> float:
        """The mean of F1 over the classes that the folder has, in [0, 1]."""
        scores = [score.f1 for score in self.by_class()]
        return math.fsum(scores) / len(scores)

    def worst(self, count: int = 24) -> list[int]:
        """Indices of wrongly answered images, the most confident answers first; at most `count`."""
        wrong = torch.nonzero(self.found != self.labels).flatten()
        order = self.probability[wrong].argsort(descending=True, stable=True)
        chosen: list[int] = wrong[order][: check.number("count", count, 1, whole=True)].tolist()
        return chosen

    def confusion_figure(self) -> Figure:
        """How often each class was answered with each, as shares of the class's images; classes that occur only."""
        from matplotlib.figure import Figure

        kept = torch.cat([self.labels, self.found]).unique()
        counts = torch.tensor(self.accuracy.confusion, dtype=torch.float64)[kept][:, kept]
        side = max(4.0, 0.22 * len(kept) + 2)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.add_subplot()
        shown = axes.imshow(
            (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy(), cmap="Blues", vmin=0, vmax=1
        )
        names = [in_figure(self.class_names[c]) for c in kept.tolist()]
        axes.set_xticks(range(len(kept)), names, rotation=90)
        axes.set_yticks(range(len(kept)), names)
        axes.set(xlabel="answer", ylabel="class of the folder")
        figure.colorbar(shown, label="share of the class's images", shrink=0.7)
        return figure

    def worst_figure(self, count: int = 24) -> Figure:
        """The images of `worst`, each under its class and the answer. Raises ValueError if no answer was wrong."""
        from matplotlib.figure import Figure

        chosen = self.worst(count)
        if not chosen:
            raise ValueError("no answer was wrong: there is nothing to show")
        columns = min(6, len(chosen))
        rows = -(-len(chosen) // columns)
        figure = Figure(figsize=(1.7 * columns, 2.1 * rows), layout="constrained")
        cells = list(figure.subplots(rows, columns, squeeze=False).flat)
        for cell in cells:
            cell.set_axis_off()
        for cell, i in zip(cells, chosen, strict=False):
            cell.imshow(resize_and_crop(128)(read_image(self.files[i])).permute(1, 2, 0).numpy())
            label, answer = (in_figure(self.class_names[int(c)]) for c in (self.labels[i], self.found[i]))
            cell.set_title(f"{label}\n→ {answer} ({100 * self.probability[i]:.0f} %)", fontsize=7)
        return figure


@check.keywords
def predict(
    model: Model,
    images: Iterable[str | Path] | str | Path,
    *,
    top: int = 5,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    skip_broken: bool = False,
    progress: bool = False,
) -> list[tuple[Path, list[tuple[str, float]]]]:
    """For every image its file and the `top` most probable classes, most probable first, with probabilities in [0, 1].

    model: a `tpgm.models.Pretrained`, a name or file that `tpgm.models.load` knows, or the folder of a run. images:
    files, or folders, in which images are found at any depth. They are prepared as those of the training were: upright,
    RGB, shorter side to the model's size, centre cropped. device: by default a GPU if there is one. skip_broken: leave
    out files that cannot be read, with one warning that counts them.

    Raises FileNotFoundError for a missing file or folder, ValueError for no images, OSError naming the first image that
    cannot be read, and what `tpgm.models.load` raises.
    """
    check.number("top", top, 1, whole=True)
    check.number("batch_size", batch_size, 1, whole=True)
    given = [images] if isinstance(images, str | Path) else list(images)
    files = images_in([check.path("images", one) for one in given])
    start, names = opened(model)
    found = []
    for kept, shares in _answers(start, files, batch_size, device, skip_broken, progress):
        best = shares.topk(min(top, shares.shape[1]))
        for file, classes, values in zip(kept, best.indices.tolist(), best.values.tolist(), strict=True):
            found.append((file, [(names[c], value) for c, value in zip(classes, values, strict=True)]))
    return found


@check.keywords
def evaluate(
    model: Model,
    folder: str | Path,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    skip_broken: bool = False,
    ood_extra: Extra = "refuse",
    progress: bool = False,
) -> Evaluation:
    """The model's answers on a folder of class folders, whose names must be among the model's; some may be missing.

    Arguments and errors as for `predict`. ood_extra: "ignore" leaves out classes that the model does not have. Also
    ValueError for a model without class names or another class.
    """
    check.number("batch_size", batch_size, 1, whole=True)
    check.choice("ood_extra", ood_extra, get_args(Extra))
    start, names = opened(model)
    if start.class_names is None:
        raise ValueError(
            f"{start.name} has no class names, which a folder's classes could be: give them to load or save"
        )
    files, labels = labelled_folder(check.path("folder", folder), names, ood_extra)
    label_of = dict(zip(files, labels, strict=True))
    kept: list[Path] = []
    parts = []
    for batch, shares in _answers(start, files, batch_size, device, skip_broken, progress):
        kept += batch
        parts.append(shares.max(dim=1))
    probability, found = (torch.cat([part[n] for part in parts]) for n in (0, 1))
    wanted = torch.tensor([label_of[file] for file in kept])
    confusion = torch.bincount(wanted * len(names) + found, minlength=len(names) ** 2).view(len(names), len(names))
    return Evaluation(Accuracy.of(confusion), names, tuple(kept), wanted, found, probability)


def summary(evaluations: Mapping[str, Evaluation]) -> str:
    """Accuracy with its 95 % interval, macro-F1 and images of each folder, as a Markdown table in per cent."""
    lines = ["| data | accuracy | 95 % interval | macro-F1 | images |", "|---|---:|---:|---:|---:|"]
    for name, e in evaluations.items():
        low, high = (100 * bound for bound in e.accuracy.interval)
        scores = f"{100 * e.accuracy.value:.1f} | {low:.1f} to {high:.1f} | {100 * e.macro_f1:.1f}"
        lines.append(f"| {in_markdown(name)} | {scores} | {e.accuracy.total} |")
    return "\n".join(lines)


def write(folder: str | Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Into `folder`: evaluation.json with all counts and the scores of every class, and for each evaluation the
    confusion and the most confident wrong answers as figures. Raises OSError if it cannot be written."""
    out, content = check.path("folder", folder), {}
    out.mkdir(parents=True, exist_ok=True)
    for number, (name, e) in enumerate(evaluations.items()):
        figures = {"confusion_figure": e.confusion_figure()}
        if e.worst(1):
            figures["worst_figure"] = e.worst_figure()
        files = {what: f"{number}_{what}.png" for what in figures}  # a name may hold what a file's name may not
        for what, figure in figures.items():
            with write_aside(out / files[what]) as aside:
                figure.savefig(aside, format="png", dpi=160)
        classes = [score._asdict() for score in e.by_class()]
        scores = {"accuracy": e.accuracy.value, "interval": e.accuracy.interval, "macro_f1": e.macro_f1}
        content[name] = {**e.accuracy.counts, **scores, "class_names": e.class_names, "classes": classes, **files}
    with write_aside(out / "evaluation.json") as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def opened(model: Model) -> tuple[Pretrained, tuple[str, ...]]:
    """The model, loaded where a name, file or run's folder is given, and the names of its classes, numbers if it has
    none. Raises FileNotFoundError for a folder without a model."""
    if not isinstance(model, Pretrained):
        check.path("model", model, "a model's name, the file of one, or the folder of a run")
        model = load(model)
    classes = len(model.model.get_parameter(f"{model.head}.weight"))
    return model, model.class_names or tuple(map(str, range(classes)))


def _answers(
    start: Pretrained,
    files: Sequence[Path],
    batch_size: int,
    device: str | torch.device | None,
    skip_broken: bool,
    progress: bool,
) -> Iterator[tuple[list[Path], Tensor]]:
    """Batches of files and their (B, C) float32 probabilities on the CPU; the model goes back to its device."""
    pixels = resize_and_crop(start.preparation.size)

    def prepared(file: Path) -> Tensor:
        image: Tensor = pixels(read_image(file))
        return image

    def tried(read: Callable[[Path], Any], file: Path) -> Any:
        """What `read` gives, or the error, which is raised unless broken images are skipped."""
        try:
            return read(file)
        except OSError as error:
            if not skip_broken:
                raise OSError(f"{error}, or leave it out by skip_broken (--skip-broken)") from error
            return error

    for file in () if skip_broken else files:
        tried(check_header, file)
    before = next(start.model.parameters()).device
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    broken: list[OSError] = []
    bar = need("tqdm", "train").tqdm(total=len(files), desc="images", disable=not progress)
    try:
        start.model.to(chosen)
        with bar, ThreadPoolExecutor(READERS) as readers, eval_mode(start.model):
            for at in range(0, len(files), batch_size):
                batch = files[at : at + batch_size]
                read_ones = list(zip(batch, readers.map(partial(tried, prepared), batch), strict=True))
                broken += [error for _, error in read_ones if isinstance(error, OSError)]
                whole = [(file, image) for file, image in read_ones if isinstance(image, Tensor)]
                bar.update(len(batch))
                if whole:
                    with torch.no_grad():
                        x = start.preparation(torch.stack([image for _, image in whole]), chosen)
                        yield [file for file, _ in whole], start.model(x).float().softmax(dim=1).cpu()
    finally:
        start.model.to(before)
    if len(broken) == len(files):
        raise OSError(f"none of {len(files)} images can be read; the first: {broken[0]}")
    if broken:
        told = f"{len(broken)} of {len(files)} images cannot be read and are left out"
        warnings.warn(f"{told}; the first: {broken[0]}", stacklevel=3)

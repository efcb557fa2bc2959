"""Bad inputs at every public door: each is refused, and the message names the argument, the value and the cure.

``python -m pytest tests/test_bad_inputs.py -s`` prints all messages for a reader to judge;
``python -m tests.test_bad_inputs`` counts them by class.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import re
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tpgm
from tests.small import small_data, small_start
from tpgm import TPGM, interpolate, methods, models, project
from tpgm.buffers import reestimate
from tpgm.cli import main
from tpgm.data import DataSplits, ImageArray, ImageFiles, Preparation, image_folder, resize_and_crop
from tpgm.optim import SGDP, AdamP, AdamSPD, DiGraP
from tpgm.training import finetune

NAN, INF = math.nan, math.inf
MEANT = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError)


class Told(Exception):
    """What the command line said on stderr before it returned 1 or 2."""


class Case(NamedTuple):
    """call: gets a `Rig`. argument, value, cure: patterns that the message must contain."""

    door: str
    name: str
    call: Callable[[Rig], Any]
    argument: str
    value: str
    cure: str


class Rig:
    """What calls need besides their bad input. Made anew for every case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def net(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))

    @property
    def state(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.net.state_dict().items()}

    def broken(self, value: float = NAN) -> dict[str, Tensor]:
        return {**self.state, "0.bias": torch.full((3,), value)}

    def poison(self) -> nn.Sequential:
        """The net with a NaN among its weights."""
        with torch.no_grad():
            self.net[0].bias.fill_(NAN)
        return self.net

    def moved(self) -> TPGM:
        """A constraint on weights that have moved, after an update."""
        constraint = TPGM(self.net)
        with torch.no_grad():
            for p in self.net.parameters():
                p.add_(0.1)
        constraint.update(self.loss)
        return constraint

    def loss(self) -> Tensor:
        return cross_entropy(self.net(torch.ones(2, 4)), torch.tensor([0, 1]))

    def load(self, **changes: Any) -> None:
        """Load a constraint's state with these entries changed."""
        constraint = self.moved()
        constraint.load_state_dict({**constraint.state_dict(), **changes})

    def radii(self, value: Any) -> dict[str, Any]:
        return {**self.moved().state_dict()["radii"], "0.bias": value}

    def stepped(self, kind: Any = AdamP, **settings: Any) -> torch.optim.Optimizer:
        optimizer = kind(self.net.parameters(), **settings)
        self.loss().backward()
        optimizer.step()
        return optimizer

    def reload(self, name: str, value: Any, kind: Any = AdamP) -> None:
        """Load an optimizer's state in which an entry of the first parameter is `value`."""
        optimizer = self.stepped(kind)
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0][name] = value
        optimizer.load_state_dict(state)

    def tune(self, *arguments: Any, **settings: Any) -> Any:
        return finetune(*(arguments or (small_start(), small_data(9))), **{"progress": False, "epochs": 1, **settings})

    @cached_property
    def file(self) -> Path:
        """A file that is a plain text."""
        path = self.folder / "a.txt"
        path.write_text("not what you think")
        return path

    @cached_property
    def below_file(self) -> Path:
        """A path that cannot be written."""
        return self.file / "below"

    @cached_property
    def photos(self) -> Path:
        from PIL import Image

        for label in ("cat", "dog"):
            for number in range(5):
                path = self.folder / "photos" / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(path)
        return self.folder / "photos"

    def write(self, name: str, content: str | bytes) -> str:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def notebook(self, source: str = "n: int = 3  # a number", tags: tuple[str, ...] = ("parameters",)) -> str:
        cell = {"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}, "outputs": []}
        cell |= {"execution_count": None, "id": "a"}
        return self.write("n.ipynb", json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))

    def row(self, **changes: Any) -> dict[str, Any]:
        config = {"label": "x", "model": "icons-resnet", "method": "tpgm", "settings": {}}
        return {"config": config, "accuracies": {}, "val": 0.5, "id": 0.5, "ood": 0.5, "seconds": 1.0, **changes}

    def rows(self, *rows: Any) -> str:
        return self.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def splits(self, **changes: Any) -> DataSplits:
        data = small_data(9)
        given = {name: getattr(data, name) for name in data.__dataclass_fields__}
        return DataSplits(**{**given, **changes})

    def cli(self, *arguments: Any) -> None:
        """Run a command; raises `Told` with what it said if it returned 1 or 2."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                status = main([str(a) for a in arguments])
            except SystemExit as end:
                status = int(end.code or 0)
        text = said.getvalue().strip()
        if status:
            assert status in (1, 2), status
            lines = [line for line in text.splitlines() if re.match(r"tpgm[\w -]*: ", line)]
            assert len(lines) == 1, text
            assert "Traceback" not in text
            raise Told(text[text.index(lines[0]) :])

    def grid(self, text: str, *more: str) -> None:
        """Run a sweep of a YAML file."""
        self.cli("sweep", self.write("grid.yaml", text), "--out", self.folder / "out", "--quiet", *more)

    def tpgm(self, *arguments: str, model: Any = "m", data: Any = None, out: Any = None) -> None:
        """``tpgm finetune`` on the photos."""
        where = [model, self.photos if data is None else data, "--out", self.folder / "o" if out is None else out]
        self.cli("finetune", *where, "--quiet", *arguments)

    def lightning(self, *data: Any, **settings: Any) -> None:
        from tpgm.integrations.lightning import TPGMCallback

        first = [torch.zeros(3), len] if not data else [*data, len][:2]
        TPGMCallback(*first, **settings)

    def trainer(self, *data: Any, **settings: Any) -> None:
        from types import SimpleNamespace

        from tpgm.integrations.transformers import TPGMCallback

        args = SimpleNamespace(restore_callback_states_from_checkpoint=False)
        made = SimpleNamespace(args=args, model=self.net)
        TPGMCallback(*(data or (made, torch.zeros(3))), **settings)


def _cases() -> Iterator[Case]:
    def door(name: str, *rows: tuple[str, Callable[[Rig], Any], str, str, str]) -> Iterator[Case]:
        for row in rows:
            yield Case(name, *row)

    number = r"number"
    yield from door(
        "TPGM",
        ("model None", lambda r: TPGM(None), "model", "None", r"nn\.Module"),
        ("model a class", lambda r: TPGM(nn.Linear), "model", "Linear", r"nn\.Module|instance"),
        ("model a state dict", lambda r: TPGM(r.state), "model", "dict", r"nn\.Module"),
        ("lr True", lambda r: TPGM(r.net, lr=True), "lr", "True", number),
        ("lr text", lambda r: TPGM(r.net, lr="0.1"), "lr", r"'0\.1'", number),
        ("lr None", lambda r: TPGM(r.net, lr=None), "lr", "None", number),
        ("lr NaN", lambda r: TPGM(r.net, lr=NAN), "lr", "nan", "finite"),
        ("lr list", lambda r: TPGM(r.net, lr=[0.1]), "lr", r"\[0\.1\]", number),
        ("lr complex", lambda r: TPGM(r.net, lr=1j), "lr", "1j", number),
        ("penalty text", lambda r: TPGM(r.net, penalty="a"), "penalty", "'a'", number),
        ("penalty negative", lambda r: TPGM(r.net, penalty=-1), "penalty", "-1", "at least 0"),
        ("tv None", lambda r: TPGM(r.net, tv=None), "tv", "None", number),
        ("tv True", lambda r: TPGM(r.net, tv=True), "tv", "True", number),
        ("keep_copy text", lambda r: TPGM(r.net, keep_copy="no"), "keep_copy", "'no'", "True or False"),
        ("keep_copy number", lambda r: TPGM(r.net, keep_copy=0), "keep_copy", "0", "True or False"),
        ("groups empty", lambda r: TPGM(r.net, groups=[]), "groups", r"\[\]", "None"),
        ("groups of nothing", lambda r: TPGM(r.net, groups=[[]]), "groups", r"\[\]", "pattern"),
        ("groups text", lambda r: TPGM(r.net, groups="0.*"), "groups", r"'0\.\*'", r"\[\["),
        ("groups flat", lambda r: TPGM(r.net, groups=["0.*"]), "each of groups", r"got '0\.\*'", r"list of pattern"),
        ("groups of None", lambda r: TPGM(r.net, groups=[None]), "each of groups", "got None", r"\['a"),
        ("groups of numbers", lambda r: TPGM(r.net, groups=[[0]]), "pattern in groups", "0", "a text"),
        ("groups a number", lambda r: TPGM(r.net, groups=3), "groups", "3", "pattern"),
        ("groups unmatched", lambda r: TPGM(r.net, groups=[["9.*"]]), "groups", r"'9\.\*'", "look like"),
        ("exclude None", lambda r: TPGM(r.net, exclude=None), "exclude", "None", r"\(\)|pattern"),
        ("exclude number", lambda r: TPGM(r.net, exclude=3), "exclude", "3", "pattern"),
        ("exclude of numbers", lambda r: TPGM(r.net, exclude=[3]), "exclude", "3", "pattern"),
        ("exclude text", lambda r: TPGM(r.net, exclude="1.*"), "exclude", r"1\.\*", "write"),
        ("exclude unmatched", lambda r: TPGM(r.net, exclude=["head.*"]), "exclude", r"head", "look like"),
        ("everything excluded", lambda r: TPGM(r.net, exclude=["*"]), "exclude", r"'\*'", "leave|narrow|fewer"),
        ("everything frozen", lambda r: TPGM(r.net.requires_grad_(False)), "model", "frozen", r"requires_grad_\(\)\)$"),
        ("no parameters", lambda r: TPGM(nn.ReLU()), "model", "ReLU of 0 parameters: give", "fine-tuned$"),
        ("anchor_dtype text", lambda r: TPGM(r.net, anchor_dtype="bf16"), "anchor_dtype", "'bf16'", r"torch\.bfloat16"),
        ("anchor_dtype int8", lambda r: TPGM(r.net, anchor_dtype=torch.int8), "anchor_dtype", "int8", "floating"),
        ("anchor_dtype float", lambda r: TPGM(r.net, anchor_dtype=float), "anchor_dtype", "float", r"torch\.bfloat16"),
        ("anchor_device unknown", lambda r: TPGM(r.net, anchor_device="gpu7"), "anchor_device", "gpu7", "cpu"),
        ("anchor_device number", lambda r: TPGM(r.net, anchor_device=3.5), "anchor_device", r"3\.5$", "cpu"),
        ("norm capital", lambda r: TPGM(r.net, norm="L2"), "norm", "'L2'", "'l2'"),
        ("norm None", lambda r: TPGM(r.net, norm=None), "norm", "None", "'l2'"),
        ("norm list", lambda r: TPGM(r.net, norm=["l2"]), "norm", r"\['l2'\]", "'mars'"),
        ("unit unknown", lambda r: TPGM(r.net, unit="weights"), "unit", "'weights'", "'weight'"),
        ("start None", lambda r: TPGM(r.net, start=None), "start", "None", "'largest'"),
        ("buffers unknown", lambda r: TPGM(r.net, buffers="moved"), "buffers", "'moved'", "'move'"),
        ("buffers True", lambda r: TPGM(r.net, buffers=True), "buffers", "True", "'keep'"),
        ("anchor unknown word", lambda r: TPGM(r.net, anchor="zeros"), "anchor", "'zeros'", "'zero'"),
        ("anchor a path", lambda r: TPGM(r.net, anchor="a.pth"), "anchor", "'a.pth'", "state dict"),
        ("anchor a list", lambda r: TPGM(r.net, anchor=[1, 2]), "anchor", r"\[1, 2\]", "state dict"),
        ("anchor empty", lambda r: TPGM(r.net, anchor={}), "anchor is empty", "lacks", "exclude"),
        (
            "anchor of lists",
            lambda r: TPGM(r.net, anchor={**r.state, "0.bias": [1]}),
            r"0\.bias",
            "list",
            "must be a tensor[^.]*$",
        ),
        ("anchor key", lambda r: TPGM(r.net, anchor={3: torch.ones(2)}), "anchor", "3", "name"),
        ("anchor NaN", lambda r: TPGM(r.net, anchor=r.broken()), r"anchor(.|\n)*0\.bias", "NaN", "load.*anchor$"),
        ("anchor inf", lambda r: TPGM(r.net, anchor=r.broken(INF)), r"anchor(.|\n)*0\.bias", "inf", "load.*anchor$"),
        (
            "weights NaN",
            lambda r: TPGM(r.poison()),
            r"^tensors of the model",
            r"0\.bias: model holds NaN",
            "load.*anchor$",
        ),
        ("unknown keyword", lambda r: TPGM(r.net, nrom="l2"), "nrom", "nrom", "'norm'"),
    )
    yield from door(
        "TPGM.update",
        ("closure None", lambda r: TPGM(r.net).update(None), "closure", "None", "function"),
        ("closure a loss", lambda r: TPGM(r.net).update(r.loss()), "closure", "Tensor|tensor", "function"),
        ("closure that needs arguments", lambda r: TPGM(r.net).update(lambda x: r.loss()), "closure", "x", "argument"),
        ("loss None", lambda r: r.moved().update(lambda: None), "closure", "None", "return"),
        ("loss a float", lambda r: r.moved().update(lambda: r.loss().item()), "closure", "float", "return|item"),
        ("loss a vector", lambda r: r.moved().update(lambda: r.loss() * torch.ones(2)), "closure", r"\(2,\)", "mean"),
        ("loss detached", lambda r: r.moved().update(lambda: r.loss().detach()), "closure", "gradient", "no_grad"),
        ("loss NaN", lambda r: r.moved().update(lambda: r.loss() * NAN), "loss", "nan", "lower|check"),
        ("loss of another model", lambda r: r.moved().update(lambda: (torch.ones(2, requires_grad=True)).sum()),
         "closure", "does not depend", "compute"),
        ("weights NaN", lambda r: (c := r.moved(), r.poison(), c.update(r.loss)), r"0\.bias", "NaN",
         "lower|load|go back"),
    )  # fmt: skip
    yield from door(
        "TPGM.project_",
        ("unmoved text", lambda r: r.moved().project_(unmoved="yes"), "unmoved", "'yes'", "True or False"),
        ("batches in vain", lambda r: r.moved().project_(batches=[torch.ones(2, 4)]), "batches", "'keep'",
         "leave batches out, or construct"),
        ("weights NaN", lambda r: (c := r.moved(), r.poison(), c.project_()), r"0\.bias", "NaN", "lower|load|go back"),
        ("projected, weights NaN", lambda r: (c := r.moved(), r.poison(), c.projected().__enter__()),
         r"0\.bias", "NaN", "lower|load|go back"),
        ("unknown keyword", lambda r: r.moved().project_(unmoev=True), "unmoev", "unmoev", "'unmoved'"),
    )  # fmt: skip
    yield from door(
        "TPGM.load_state_dict",
        ("None", lambda r: TPGM(r.net).load_state_dict(None), "state", "None", r"state_dict\(\)"),
        ("a list", lambda r: TPGM(r.net).load_state_dict([]), "state", r"\[\]|list", r"state_dict\(\)"),
        ("empty", lambda r: TPGM(r.net).load_state_dict({}), "state", "lacks", r"state_dict\(\)"),
        ("a model's", lambda r: TPGM(r.net).load_state_dict(r.state), "state", "lacks", r"state_dict\(\)"),
        ("radius NaN", lambda r: r.load(radii=r.radii(torch.tensor(NAN))), r"0\.bias", "nan", "state"),
        ("radius negative", lambda r: r.load(radii=r.radii(torch.tensor(-1.0))), r"0\.bias", r"-1", "at least 0"),
        ("radius text", lambda r: r.load(radii=r.radii("1")), r"0\.bias", "'1'", "tensor|number"),
        ("radii a list", lambda r: r.load(radii=[1.0]), "radii", r"\[1\.0\]|list", r"state"),
        ("optimizer None", lambda r: r.load(optimizer=None), "optimizer", "None", "state"),
        ("optimizer empty", lambda r: r.load(optimizer={}), "optimizer", r"\{\}|lacks", "state"),
        (
            "norms short",
            lambda r: r.load(norms=[torch.ones(1)]),
            "norms",
            "1 tensors or other rows, not 7 rows of 4 tensors",
            "state",
        ),
        ("norms NaN", lambda r: r.load(norms=[torch.full((n,), NAN) for n in (3, 1, 2, 1)]), "norms", "NaN", "state"),
        ("another norm", lambda r: r.load(norm="l2"), "norm", "'l2'", "construct"),
        ("another unit", lambda r: r.load(unit="weight"), "unit", "'weight'", "construct"),
        ("other names", lambda r: r.load(radii={}), "exclude", r"0\.bias", "construct"),
    )
    weight = torch.ones(2, 3)
    yield from door(
        "project",
        ("weight a list", lambda r: project([1.0], weight, 1.0), "weight", r"\[1\.0\]|list", "tensor"),
        ("anchor None", lambda r: project(weight, None, 1.0), "anchor", "None", "tensor"),
        ("weight NaN", lambda r: project(weight * NAN, weight, 1.0), "weight", "NaN", "finite|check|load"),
        ("anchor inf", lambda r: project(weight, weight * INF, 1.0), "anchor", "inf", "finite|check|load"),
        ("weight int", lambda r: project(weight.int(), weight, 1.0), "weight", "int32", r"float"),
        ("shapes", lambda r: project(weight, weight[:1], 1.0), "anchor", r"\(1, 3\)", "same shape"),
        ("radius text", lambda r: project(weight, weight, "1"), "radius", "'1'", number),
        ("radius None", lambda r: project(weight, weight, None), "radius", "None", number),
        ("radius True", lambda r: project(weight, weight, True), "radius", "True", number),
        ("radius NaN", lambda r: project(weight, weight, NAN), "radius", "nan", "at least 0"),
        ("radius negative", lambda r: project(weight, weight, -1.0), "radius", "-1", "at least 0"),
        ("radius shape", lambda r: project(weight, weight, torch.ones(5)), "radius", r"\(5,\)", "row"),
        ("norm unknown", lambda r: project(weight, weight, 1.0, "l3"), "norm", "'l3'", "'l2'"),
        ("unknown keyword", lambda r: project(weight, weight, radus=1.0), "radus", "radus", "'radius'"),
    )
    yield from door(
        "interpolate",
        ("model None", lambda r: interpolate(None, r.state, 0.5), "model", "None", r"nn\.Module"),
        ("anchor None", lambda r: interpolate(r.net, None, 0.5), "anchor", "None", "state dict"),
        ("anchor zero", lambda r: interpolate(r.net, "zero", 0.5), "anchor", "'zero'", "state dict"),
        ("anchor NaN", lambda r: interpolate(r.net, r.broken(), 0.5), r"0\.bias", "anchor holds NaN", "load.*anchor$"),
        ("weights NaN", lambda r: interpolate(r.poison(), {n: t.nan_to_num() for n, t in r.state.items()}, 0.5),
         r"model(.|\n)*0\.bias", "NaN", "load|give|exclude"),
        ("alpha None", lambda r: interpolate(r.net, r.state, None), "alpha", "None", number),
        ("alpha text", lambda r: interpolate(r.net, r.state, "0.5"), "alpha", r"'0\.5'", number),
        ("alpha True", lambda r: interpolate(r.net, r.state, True), "alpha", "True", number),
        ("alpha NaN", lambda r: interpolate(r.net, r.state, NAN), "alpha", "nan", "finite"),
        ("exclude None", lambda r: interpolate(r.net, r.state, 0.5, exclude=None), "exclude", "None", r"\(\)|pattern"),
        ("buffers", lambda r: interpolate(r.net, r.state, 0.5, buffers="kept"), "buffers", "'kept'", "'keep'"),
        ("batches missing", lambda r: interpolate(r.net, r.state, 0.5, buffers="reestimate"), "got .*reestimate",
         "no batches", "give an iterable"),
        ("unknown keyword", lambda r: interpolate(r.net, r.state, alhpa=0.5), "alhpa", "alhpa", "'alpha'"),
    )  # fmt: skip
    yield from door(
        "reestimate",
        ("model None", lambda r: reestimate(None, [torch.ones(2, 4)]), "model", "None", r"nn\.Module"),
        ("batches None", lambda r: reestimate(nn.BatchNorm1d(4), None), "batches", "None", "iterable.*function"),
        ("batches a number", lambda r: reestimate(nn.BatchNorm1d(4), 3), "batches", "3", "iterable.*function"),
        ("no batches", lambda r: reestimate(nn.BatchNorm1d(4), []), "batches", "empty", "give|batch"),
    )
    for kind in (SGDP, AdamP, AdamSPD, DiGraP):
        yield from door(
            kind.__name__,
            ("lr True", lambda r, k=kind: k(r.net.parameters(), lr=True), "lr", "True", number),
            ("lr text", lambda r, k=kind: k(r.net.parameters(), lr="0.1"), "lr", r"'0\.1'", number),
            ("lr None", lambda r, k=kind: k(r.net.parameters(), lr=None), "lr", "None", number),
            ("lr NaN", lambda r, k=kind: k(r.net.parameters(), lr=NAN), "lr", "nan", "finite"),
            ("weight_decay text", lambda r, k=kind: k(r.net.parameters(), weight_decay="1"), "weight_decay", "'1'",
             number),
            ("anchor NaN", lambda r, k=kind: k(r.net.named_parameters(), anchor=r.broken()), r"0\.bias", "NaN",
             "load|give"),
            ("anchor True", lambda r, k=kind: k(r.net.parameters(), anchor=True), "anchor", "True", "False"),
            ("state None", lambda r, k=kind: k(r.net.parameters()).load_state_dict(None), "state", "None",
             r"state_dict\(\)"),
            ("state empty", lambda r, k=kind: k(r.net.parameters()).load_state_dict({}), "state", "lack",
             r"state_dict\(\)"),
            ("unknown keyword", lambda r, k=kind: k(r.net.parameters(), anchr=None), "anchr", "anchr", "'anchor'"),
        )  # fmt: skip
    yield from door(
        "optimizers",
        ("params the model", lambda r: AdamP(r.net), "params", "Sequential", r"parameters\(\)"),
        ("params empty", lambda r: AdamP([]), "param", "empty", r"parameters"),
        ("params NaN", lambda r: AdamP(r.poison().parameters()), "^params: parameter 1", "NaN", "load"),
        ("anchor number", lambda r: AdamP(r.net.parameters(), anchor=3), "anchor", "3", "sequence"),
        ("anchor word", lambda r: AdamP(r.net.parameters(), anchor="zeros"), "anchor", "'zeros'", "'zero'"),
        ("anchor of floats", lambda r: AdamP(r.net.parameters(), anchor=[1.0] * 4), "anchor", "float", "tensor"),
        ("anchor short", lambda r: AdamP(r.net.parameters(), anchor=[torch.ones(3)]), "anchor", "1", "give"),
        ("betas a number", lambda r: AdamP(r.net.parameters(), betas=0.9), "betas", r"0\.9", "two"),
        ("betas texts", lambda r: AdamP(r.net.parameters(), betas=("a", 0.9)), "betas", "'a'", "two|number"),
        ("betas 1", lambda r: AdamSPD(r.net.parameters(), betas=(0.9, 1.0)), "betas", r"1\.0", "below 1|1\\)"),
        ("eps None", lambda r: DiGraP(r.net.parameters(), eps=None), "eps", "None", number),
        ("momentum text", lambda r: SGDP(r.net.parameters(), momentum="x"), "momentum", "'x'", number),
        ("nesterov text", lambda r: SGDP(r.net.parameters(), nesterov="no"), "nesterov", "'no'", "True or False"),
        ("norm unknown", lambda r: SGDP(r.net.parameters(), norm="L2"), "norm", "'L2'", "'l2'"),
        ("norm list", lambda r: AdamP(r.net.parameters(), norm=["l2"]), "norm", r"\['l2'\]", "'l2'"),
        ("kappa 2", lambda r: SGDP(r.net.parameters(), kappa=2), "kappa", "2", "between 0 and 1|\\[0, 1\\]"),
        ("kappa True", lambda r: AdamP(r.net.parameters(), kappa=True), "kappa", "True", number),
        ("radius_lr NaN", lambda r: AdamP(r.net.parameters(), radius_lr=NAN), "radius_lr", "nan", "finite"),
        ("strength text", lambda r: AdamSPD(r.net.parameters(), strength="1"), "strength", "'1'", number),
        ("omega_lr negative", lambda r: DiGraP(r.net.parameters(), omega_lr=-1), "omega_lr", "-1", "at least 0"),
        ("closure", lambda r: AdamP(r.net.parameters()).step(3), "closure", "3", "function"),
        ("radius NaN", lambda r: r.reload("radius", torch.tensor(NAN)), "radius", "nan|NaN", "state"),
        ("radius negative", lambda r: r.reload("radius", torch.tensor(-1.0)), "radius", "-1", "state"),
        ("moments NaN", lambda r: r.reload("exp_avg", torch.full((3, 4), NAN)), "exp_avg", "NaN", "state"),
        ("anchor in a state NaN", lambda r: r.reload("anchor", torch.full((3, 4), INF)), "anchor", "inf", "state"),
        ("omega above 1", lambda r: r.reload("omega", torch.tensor(3.0), DiGraP), "omega", "3", "state"),
        ("another class's state", lambda r: SGDP(r.net.parameters()).load_state_dict(r.stepped().state_dict()),
         "state", "SGDP", "lack .*momentum.*state"),
    )  # fmt: skip
    yield from door(
        "finetune",
        ("model None", lambda r: r.tune(None, small_data(9)), "model", "None", r"tpgm\.models\.load"),
        ("model a module", lambda r: r.tune(r.net, small_data(9)), "model", "Sequential", "Pretrained|architecture"),
        ("model unknown", lambda r: r.tune("icons-resnt", small_data(9)), "model", "icons-resnt", "icons-resnet"),
        ("model missing", lambda r: r.tune("no.pth", small_data(9)), "no.pth", "no.pth", "path|name|load"),
        ("data None", lambda r: r.tune(small_start(), None), "data", "None", r"tpgm\.data"),
        ("data a folder", lambda r: r.tune(small_start(), "photos"), "data", "'photos'", "image_folder"),
        ("method unknown", lambda r: r.tune(method="tpmg"), "method", "'tpmg'", "'tpgm'"),
        ("method None", lambda r: r.tune(method=None), "method", "None", "name"),
        ("setting unknown", lambda r: r.tune(epoch=3), "'epoch'", "epoch", "'epochs'"),
        ("epochs text", lambda r: r.tune(epochs="3"), "epochs", "'3'", "number|int"),
        ("epochs 1.5", lambda r: r.tune(epochs=1.5), "epochs", r"1\.5", "whole|int"),
        ("epochs 0", lambda r: r.tune(epochs=0), "epochs", "0", "at least 1"),
        ("lr True", lambda r: r.tune(lr=True), "lr", "True", "number|float"),
        ("lr inf", lambda r: r.tune(lr=INF), "lr", "inf", "finite"),
        ("augment text", lambda r: r.tune(augment="no"), "augment", "'no'", "True or False"),
        ("precision", lambda r: r.tune(precision="fp16"), "precision", "'fp16'", "'bf16'"),
        ("seed negative", lambda r: r.tune(seed=-1), "seed", "-1", "at least 0"),
        ("train text", lambda r: r.tune(method="partial", train="conv.*"), "train", r"conv", r"\['conv"),
        ("train empty", lambda r: r.tune(method="partial", train=()), "train", "partial", r"\["),
        ("train unmatched", lambda r: r.tune(method="partial", train=("cnv.*",)), "train", r"cnv", "look like"),
        ("out number", lambda r: r.tune(out=3), "out", "3", "path"),
        ("out empty", lambda r: r.tune(out=""), "out", "''|empty", "folder"),
        ("out a file", lambda r: r.tune(out=r.file), r"out|a\.txt", r"a\.txt", "folder"),
        ("out below a file", lambda r: r.tune(out=r.below_file), "below", "below", "folder|choose|writ"),
        ("store a file", lambda r: r.tune(store=r.file), "store", r"a\.txt", "folder"),
        ("size 0", lambda r: r.tune(size=0), "size", "0", "at least 1"),
        ("size text", lambda r: r.tune(size="big"), "size", "'big'", number),
        ("size 1.5", lambda r: r.tune(size=1.5), "size", r"1\.5", "whole"),
        ("progress text", lambda r: r.tune(progress="no"), "progress", "'no'", "True or False"),
        ("checkpoint_seconds text", lambda r: r.tune(checkpoint_seconds="x"), "checkpoint_seconds", "'x'", number),
        ("checkpoint_seconds NaN", lambda r: r.tune(checkpoint_seconds=NAN), "checkpoint_seconds", "nan", "at least"),
    )
    yield from door(
        "methods",
        ("make number", lambda r: methods.make(3, {}), "method", "3", "name"),
        ("make None", lambda r: methods.make("tpgm", None), "settings", "None", "mapping"),
        ("make list", lambda r: methods.make("tpgm", ["lr"]), "settings", r"\['lr'\]", "mapping"),
        ("make unknown setting", lambda r: methods.make("tpgm", {"lrr": 1}), "lrr", "lrr", "'lr'"),
        ("make bad norm", lambda r: methods.make("tpgm", {"norm": "L2"}), "norm", "'L2'", "'l2'"),
        ("make list of choices", lambda r: methods.make("tpgm", {"norm": ["l2"]}), "norm", r"\['l2'\]", "'l2'"),
        ("options None", lambda r: methods.options(None), "method", "None", "tpgm"),
        ("options list", lambda r: methods.options(["tpgm"]), "method", r"\['tpgm'\]", "vanilla"),
        ("parse number", lambda r: methods.parse("tpgm", "lr", "fast"), "lr", "'fast'", "number|float"),
        ("parse flag", lambda r: methods.parse("tpgm", "augment", "no"), "augment", "'no'", "true or false"),
        ("parse unknown", lambda r: methods.parse("tpgm", "lrr", "1"), "lrr", "lrr", "'lr'"),
        ("begin and patience", lambda r: methods.make("tpgm", {"begin": 0.5, "patience": 1}), "begin", "patience",
         "leave|set|0"),
        ("begin 1", lambda r: methods.make("tpgm", {"begin": 1.0}), "begin", "1", "below 1"),
        ("numpy NaN", lambda r: methods.make("tpgm", {"lr": __import__("numpy").float64(NAN)}), "lr", "nan",
         "at least"),
    )  # fmt: skip
    callbacks = [("lightning", "TPGMCallback of lightning", lambda r, *a, **k: r.lightning(*a, **k))]
    callbacks += [("transformers", "TPGMCallback of transformers", lambda r, *a, **k: r.trainer(*a, **k))]
    for package, name, make in callbacks:
        if not find_spec(package):
            continue
        yield from door(
            name,
            ("every 0", lambda r, m=make: m(r, every=0), "every", "0", "at least 1"),
            ("every True", lambda r, m=make: m(r, every=True), "every", "True", "whole number"),
            ("updates text", lambda r, m=make: m(r, updates="2"), "updates", "'2'", "whole number"),
            ("log unknown", lambda r, m=make: m(r, log="block"), "log", "'block'", "'blocks'"),
            ("batch_size 0", lambda r, m=make: m(r, batch_size=0), "batch_size", "0", "at least 1"),
            ("batch_size text", lambda r, m=make: m(r, batch_size="8"), "batch_size", "'8'", "whole number"),
            ("unknown setting", lambda r, m=make: m(r, nrom="l2"), "nrom", "nrom", "'norm'"),
        )
        if package == "lightning":
            yield from door(
                name,
                ("validation None", lambda r: r.lightning(None), "validation", "None", "length"),
                ("validation empty", lambda r: r.lightning([]), "validation", "empty", "give|item"),
                ("loss None", lambda r: r.lightning([1], None), "loss", "None", "function"),
                ("collate", lambda r: r.lightning(collate=3), "collate", "3", "function"),
                ("seed text", lambda r: r.lightning(seed="x"), "seed", "'x'", "whole number"),
            )
        else:
            yield from door(
                name,
                ("trainer None", lambda r: r.trainer(None, [1]), "trainer", "None", "Trainer"),
                ("trainer a model", lambda r: r.trainer(r.net, [1]), "trainer", "Sequential", "Trainer"),
            )
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    yield from door(
        "data",
        ("folder missing", lambda r: image_folder("no-such"), "no-such", "no-such", "folder"),
        ("folder None", lambda r: image_folder(None), "id_folder", "None", "path"),
        ("folder a file", lambda r: image_folder(r.file), r"a\.txt", r"a\.txt", "folder"),
        ("folder empty", lambda r: image_folder(r.folder), "class folders", re.escape(tempfile.gettempdir()), "put"),
        ("val_share 1.5", lambda r: image_folder(r.photos, val_share=1.5), "val_share", r"1\.5",
         "between 0 and 1|below 1"),
        ("val_share text", lambda r: image_folder(r.photos, val_share="x"), "val_share", "'x'", number),
        ("test_share True", lambda r: image_folder(r.photos, test_share=True), "test_share", "True", number),
        ("shares sum", lambda r: image_folder(r.photos, val_share=0.6, test_share=0.6), "val_share", r"0\.6",
         "below 1"),
        ("fraction 0", lambda r: image_folder(r.photos, fraction=0), "fraction", "0", "above 0"),
        ("fraction text", lambda r: image_folder(r.photos, fraction="10"), "fraction", "'10'", number),
        ("seed None", lambda r: image_folder(r.photos, seed=None), "seed", "None", "whole number"),
        ("ood a path", lambda r: image_folder(r.photos, ood="sketches"), "ood", "'sketches'", "mapping"),
        ("ood a list", lambda r: image_folder(r.photos, ood=["sketches"]), "ood", "sketches", "mapping"),
        ("ood missing", lambda r: image_folder(r.photos, ood={"s": "no-such"}), "no-such", "no-such", "folder"),
        ("transform number", lambda r: image_folder(r.photos, transform=3), "transform", "3", "function"),
        ("unknown keyword", lambda r: image_folder(r.photos, val_shar=0.1), "val_shar", "val_shar", "'val_share'"),
        ("resize 0", lambda r: resize_and_crop(0), "size", "0", "at least 1"),
        ("resize text", lambda r: resize_and_crop("64"), "size", "'64'", "whole number"),
        ("images a list", lambda r: ImageArray([1], labels), "images", r"\[1\]|list", "tensor"),
        ("images float", lambda r: ImageArray(images.float(), labels), "images", "float32", "uint8"),
        ("labels short", lambda r: ImageArray(images, labels[:1]), "labels", r"\(1,\)", r"\(N,\)"),
        ("paths and labels", lambda r: ImageFiles([Path("a")], [0, 1], len), "labels", "2", "one"),
        ("image missing", lambda r: ImageFiles([Path("no.png")], [0], len)[0], "image", r"no\.png: no such file",
         "check the path$"),
        ("no images", lambda r: r.splits(train=ImageArray(images[:0], labels[:0])), "'train'", "no images",
         "add|give|put"),
        ("label outside", lambda r: r.splits(val=ImageArray(images, labels + 2)), "'val'", "3", "class_names"),
        ("part None", lambda r: r.splits(val=None), "val", "None", "data set"),
        ("preparation size", lambda r: Preparation(0, (0.5,) * 3, (0.5,) * 3), "size", "0", "at least 1"),
        ("preparation std", lambda r: Preparation(8, (0.5,) * 3, (0.5, 0.0, 0.5)), "std", r"0\.0", "above 0"),
        ("preparation dtype", lambda r: Preparation(8, (0.5,) * 3, (0.5,) * 3)(images.float(), torch.device("cpu")),
         "images", "float32", "uint8"),
    )  # fmt: skip
    yield from door(
        "models",
        ("name None", lambda r: models.load(None), "name", "None", "model's name or the path"),
        ("name number", lambda r: models.load(3), "name", "3", "model's name or the path"),
        ("name unknown", lambda r: models.load("resnet50"), "resnet50", "resnet50", "timm/resnet50"),
        ("name far from all", lambda r: models.load("qqqq"), "model", "qqqq", "icons-resnet"),
        ("timm unknown", lambda r: models.load("timm/resnet5O"), "resnet5O", "resnet5O", "resnet50"),
        ("num_classes 0", lambda r: models.load("icons-vit", 0), "num_classes", "0", "at least 1"),
        ("num_classes text", lambda r: models.load("icons-vit", "3"), "num_classes", "'3'", "whole number"),
        ("num_classes True", lambda r: models.load("icons-vit", True), "num_classes", "True", "whole number"),
        ("class_names text", lambda r: models.load("icons-vit", class_names="abc"), "class_names", "'abc'", r"\["),
        ("class_names count", lambda r: models.load("icons-vit", 3, class_names=["a"]), "class_names|class names", "1",
         "one for each|give"),
        ("size 0", lambda r: models.load("icons-vit", 3, size=0), "size", "0", "at least 1"),
        ("size text", lambda r: models.load("icons-vit", 3, size="64"), "size", "'64'", "whole number"),
        ("architecture number", lambda r: models.load(r.file, 3, architecture=3), "architecture", "3", "name"),
        ("templates text", lambda r: models.load("icons-vit", 3, templates="a {}"), "templates", r"'a \{\}'", r"\["),
        ("file missing", lambda r: models.load("no.safetensors"), "no.safetensors", "no.safetensors", "path"),
        ("file no checkpoint", lambda r: models.load(Path(r.file)), r"a\.txt", r"a\.txt",
         r"save\(model.state_dict\(\), …\)$"),
        ("file broken", lambda r: models.load(r.write("b.safetensors", b"\0" * 40)), r"b\.safetensors",
         "no checkpoint", r"copy it anew\)$"),
        ("architecture unsaid", lambda r: (torch.save(r.state, r.folder / "s.pth"), models.load(r.folder / "s.pth")),
         r"s\.pth", r"0\.weight", "architecture="),
        ("unknown keyword", lambda r: models.load("icons-vit", num_clases=3), "num_clases", "num_clases",
         "num_classes"),
        ("save to a folder", lambda r: models.save(r.folder, small_start(), small_start().model), "write",
         re.escape(tempfile.gettempdir()), "choose another path"),
        ("save start None", lambda r: models.save(r.folder / "m.safetensors", None, r.net), "start", "None",
         "Pretrained"),
        ("save model None", lambda r: models.save(r.folder / "m.safetensors", small_start(), None), "model", "None",
         r"nn\.Module"),
        ("save class_names", lambda r: models.save(r.folder / "m.safetensors", small_start(), small_start().model,
         "abc"),
         "class_names", "'abc'", r"\["),

        ("save dtype",
         lambda r: models.save(r.folder / "m.safetensors", small_start(), small_start().model, dtype="fp16"),
         "dtype", "'fp16'", r"torch\.float16"),
        ("save notes", lambda r: models.save(r.folder / "m.safetensors", small_start(), small_start().model,
                                             notes={"a": torch.ones(1)}), "notes", "tensor|Tensor", "JSON"),
        ("predict missing", lambda r: small_start().predict("no.png"), "image", r"no\.png", "check the path$"),
        ("predict None", lambda r: small_start().predict(None), "image", "None", "path"),
        ("predict top", lambda r: small_start().predict(images[0], top=0), "top", "0", "at least 1"),
        ("predict shape", lambda r: small_start().predict(images), "image", r"\(2, 3, 4, 4\)", r"\(3, H, W\)"),
    )  # fmt: skip
    yield from door(
        "evaluate and report",
        ("accuracy of nothing", lambda r: tpgm_accuracy(0, 0), "total", "0", "at least 1"),
        ("more right than there are", lambda r: tpgm_accuracy(3, 2), "correct", "3", "2"),
        ("mean of nothing", lambda r: tpgm_mean({}), "parts|test", r"\{\}|empty|no ", "at least|give"),
        ("report None", lambda r: tpgm.report(None), "constraint|report", "None", "TPGM"),
        ("report a model", lambda r: tpgm.report(r.net), "constraint|report", "Sequential", "TPGM"),
        ("report path", lambda r: tpgm.report(r.moved(), r.folder / "a.xyz"), "a.xyz", "xyz", r"png"),
        (
            "report unwritable",
            lambda r: tpgm.report(r.moved(), r.below_file / "a.png"),
            "write",
            "a.png",
            r"a\.txt is a file.*choose",
        ),
        ("report path number", lambda r: tpgm.report(r.moved(), 3), "path", "3", "path"),
        ("report title", lambda r: tpgm.report(r.moved(), title=3), "title", "3", "text"),
    )
    yield from door(
        "stores and rows",
        ("rows missing", lambda r: experiment().read("no.jsonl"), "no.jsonl", "no.jsonl", "check the path"),
        ("committed unknown", lambda r: experiment().committed("resnet.jsonl"), "resnet.jsonl", "resnet.jsonl",
         "there are"),
        ("append to a folder", lambda r: experiment().append(r.folder, {}), "writ", re.escape(tempfile.gettempdir()),
         "file"),
        ("row without configuration", lambda r: experiment().missing([], [{"id": 1}]), "config", r"\{'id': 1\}|'id'",
         "tpgm experiment|remove"),
        ("configuration None", lambda r: experiment().resolve(None), "config", "None", "mapping"),
        ("configuration key", lambda r: experiment().resolve({"modl": "x"}), "modl", "modl", "'model'"),
        ("configuration type", lambda r: experiment().resolve({"size": "64"}), "size", "'64'", "number|int"),
        ("configuration flag", lambda r: experiment().resolve({"size": True}), "size", "True", "number|int"),
        ("configuration setting", lambda r: experiment().resolve({"settings": {"lrr": 1}}), "lrr", "lrr", "'lr'"),
        ("configuration removed method", lambda r: experiment().resolve({"method": "tpgm-auto"}), "method", "tpgm-auto",
         "Methods"),
        ("study unknown", lambda r: study("resnet:upstrem"), "study", "resnet:upstrem", "resnet:upstream"),
        ("stage store", lambda r: store(r.file), r"a\.txt", r"a\.txt", "folder"),
        ("stage damaged", lambda r: store(r.folder).read(r.file, torch.device("cpu")), r"a\.txt", "damaged|cannot",
         "delete"),
    )  # fmt: skip
    yield from door(
        "tpgm finetune",
        ("nothing", lambda r: r.cli("finetune"), "model", "required", "--help"),
        ("unknown command", lambda r: r.cli("fintune"), "COMMAND|command", "fintune", "finetune"),
        (
            "unknown option",
            lambda r: r.tpgm("--sett", "lr=1", "--mehtod", "x"),
            "--sett lr=1 --mehtod",
            "did you mean --set, --method",
            "tpgm finetune --help",
        ),
        ("out empty", lambda r: r.tpgm(out=""), "--out", "empty", "name"),
        ("out a file", lambda r: r.tpgm(out=r.file, model=r.write("m.pth", b"")), r"a\.txt", r"a\.txt", "folder"),
        ("set without =", lambda r: r.tpgm("--set", "lr"), "--set", "'lr'", "NAME=VALUE"),
        ("set text", lambda r: r.tpgm("--set", "lr=fast"), "lr", "'fast'", "number|float"),
        ("set 1e3 epochs", lambda r: r.tpgm("--set", "epochs=1e3"), "epochs", "'1e3'", "whole|int"),
        ("set flag", lambda r: r.tpgm("--set", "augment=no"), "augment", "'no'", "true or false"),
        ("set unknown", lambda r: r.tpgm("--set", "epoch=1"), "epoch", "epoch", "'epochs'"),
        ("set twice", lambda r: r.tpgm("--set", "lr=1", "--set", "lr=2"), "lr", "'2'", "once"),
        ("set NaN", lambda r: r.tpgm("--set", "lr=nan"), "lr", "nan", "at least"),
        ("method", lambda r: r.tpgm("--method", "tpmg"), "method", "tpmg", "'tpgm'"),
        ("size 0", lambda r: r.tpgm("--size", "0"), "--size", "0", "at least 1"),
        ("size text", lambda r: r.tpgm("--size", "big"), "--size", "'big'", "whole number"),
        ("checkpoint seconds", lambda r: r.tpgm("--checkpoint-seconds", "nan"), "--checkpoint-seconds", "nan", number),
        ("per class", lambda r: r.tpgm("--train-per-class", "0", data="icons"), "--train-per-class", "0", "at least 1"),
        ("folder missing", lambda r: r.tpgm(data="no-such"), "no-such", "no-such", "folder"),
        (
            "folder empty",
            lambda r: r.tpgm(data=r.folder),
            re.escape(tempfile.gettempdir()),
            "no class folders",
            "put each",
        ),
        ("ood missing", lambda r: r.tpgm("--ood", "a=no-such"), "ood a=no-such", "no-such", "folder"),
        ("ood empty", lambda r: r.tpgm("--ood", "a="), "--ood", "'a='", "NAME=FOLDER, such as"),
        ("style", lambda r: r.tpgm(data="icons:solidd"), "solidd", "solidd", "solid"),
        ("model unknown", lambda r: r.tpgm(model="icons-vitt"), "icons-vitt", "icons-vitt", "icons-vit"),
        ("model missing", lambda r: r.tpgm(model="no.pth"), "no.pth", "no.pth", "path|name"),
        ("model broken", lambda r: r.tpgm(model=r.write("m.pth", b"abc")), "m.pth", "m.pth", r"copy it anew\)$"),
        ("methods", lambda r: r.cli("methods", "ftpp"), "method", "ftpp", "'ftp'"),
        ("completion", lambda r: r.cli("completion", "fish"), "shell", "'fish'", "bash"),
    )
    yield from door(
        "tpgm experiment, results, pretrain, recipe, data",
        ("no value", lambda r: r.cli("experiment", "model", "--out", "x"), "configuration|KEY", "'model'", "=VALUE"),
        ("key", lambda r: r.cli("experiment", "modl=x", "--out", r.folder / "x"), "modl", "modl", "'model'"),
        ("seed", lambda r: r.cli("experiment", "seed=x", "--out", r.folder / "x"), "seed", "'x'", "number|int"),
        ("setting", lambda r: r.cli("experiment", "settings.lrr=1", "--out", r.folder / "x"), "lrr", "lrr", "'lr'"),
        ("setting value", lambda r: r.cli("experiment", "settings.lr=x", "--out", r.folder / "x"), "lr", "'x'",
         "number|float"),
        ("ood", lambda r: r.cli("experiment", "ood=abc", "--out", r.folder / "x"), "ood", "'abc'",
         "NAME=FOLDER, such as"),
        ("study", lambda r: r.cli("experiment", "--protocol", "resnt", "--out", r.folder / "x"), "study", "resnt",
         "resnet"),
        ("label", lambda r: r.cli("experiment", "--protocol", "resnet:upstream", "--label", "TPGMM",
         "--out", r.folder / "x"),
         "label", "TPGMM", "choose"),
        ("both", lambda r: r.cli("experiment", "seed=1", "--protocol", "text", "--out", r.folder / "x"), "protocol",
         "both", "give"),
        ("out a folder", lambda r: r.cli("experiment", "seed=1", "--out", r.folder), "^tpgm: out: cannot write",
         re.escape(tempfile.gettempdir()), "file"),
        ("out below a file", lambda r: r.cli("experiment", "seed=1", "--out", r.below_file), "out: cannot write",
         "below",
         r"a\.txt is a file, not a folder; choose"),
        ("out empty", lambda r: r.cli("experiment", "seed=1", "--out", ""), "--out", "empty", "name"),
        ("store a file", lambda r: r.cli("experiment", "source=tiny", "--out", r.folder / "x", "--store", r.file),
         "store",
         r"a\.txt", "folder"),
        ("results missing", lambda r: r.cli("results", "no.jsonl"), "no.jsonl", "no.jsonl", "check the path"),
        ("results empty", lambda r: r.cli("results", r.write("e.jsonl", "")), "rows", r"e\.jsonl", "experiment|give"),
        ("results of something else", lambda r: r.cli("results", r.rows({"a": 1})), "config", r"rows\.jsonl", "row"),
        ("results a list", lambda r: r.cli("results", r.rows([1])), "row", r"rows\.jsonl", "row"),
        ("results without accuracy", lambda r: r.cli("results", r.rows({"config": {"method": "tpgm"}})), "row",
         r"rows\.jsonl", "id|lacks"),
        ("results plot", lambda r: r.cli("results", r.rows(r.row()), "--plot", r.folder / "a.xyz"), "plot", "xyz",
         "png"),
        ("results plot unwritable", lambda r: r.cli("results", r.rows(r.row()), "--plot", r.below_file / "a.png"),
         "write",
         r"a\.png", "folder|choose"),
        ("pretrain recipe", lambda r: r.cli("pretrain", "icons-resnt", r.folder / "a.safetensors"), "recipe",
         "icons-resnt",
         "icons-resnet"),
        ("pretrain epochs", lambda r: r.cli("pretrain", "icons-vit", r.folder / "a.safetensors", "--epochs", "0"),
         "epochs",
         "0", "at least 1"),
        ("pretrain seed", lambda r: r.cli("pretrain", "icons-vit", r.folder / "a.safetensors", "--seed", "x"), "seed",
         "'x'", "whole number"),
        ("pretrain out", lambda r: r.cli("pretrain", "icons-vit", r.below_file / "a.safetensors"), "out: cannot",
         "below",
         r"a\.txt is a file, not a folder; choose"),
        ("recipe name", lambda r: r.cli("recipe", "domainet", "--root", ".", "--checkpoint", "x",
         "--out", r.folder / "x"),
         "recipe", "domainet", "domainnet"),
        ("recipe root", lambda r: r.cli("recipe", "domainnet-clip-rn50", "--root", "no-such",
         "--checkpoint", r.file, "--out",
         r.folder / "x", "--dry-run"), "no-such", "no-such", "root|folder"),
        ("data what", lambda r: r.cli("data", "biuld"), "what|WHAT", "biuld", "build"),
        ("data style", lambda r: r.cli("data", "splits", "--style", "solidd", "--source", "tiny"), "solidd", "solidd",
         "solid"),
        ("data source", lambda r: r.cli("data", "build", "--source", "no.tgz", "--quiet"), r"no\.tgz", r"no\.tgz",
         "path|tiny|tarball"),
        ("data subset", lambda r: r.cli("data", "build", "--subset", "down"), "--subset", "down", "downstream"),
    )  # fmt: skip
    yield from door(
        "tpgm run",
        ("notebook", lambda r: r.cli("run", "03_ratio"), "03_ratio", "03_ratio", "03_ratios"),
        ("parameter", lambda r: r.cli("run", r.notebook(), "-p", "m", "3"), "'m'", "m", "It has"),
        ("parameter value", lambda r: r.cli("run", r.notebook(), "-p", "n", "x"), "n must", "'x'", "number|int"),
        ("parameter twice", lambda r: r.cli("run", r.notebook(), "-p", "n", "1", "-p", "n", "2"), "-p", "twice",
         "once"),
        ("limit 0", lambda r: r.cli("run", r.notebook(), "--limit", "0"), "--limit", "0", "above 0"),
        ("limit text", lambda r: r.cli("run", r.notebook(), "--limit", "day"), "--limit", "'day'", number),
        ("out unwritable", lambda r: r.cli("run", r.notebook(), "--out", r.below_file / "o.ipynb"), "below", "below",
         "folder|choose"),
        ("out empty", lambda r: r.cli("run", r.notebook(), "--out", ""), "--out", "empty", "name"),
        ("no cell", lambda r: r.cli("run", r.notebook(tags=()), "--parameters"), "parameters", r"n\.ipynb", "tag"),
        ("no Python", lambda r: r.cli("run", r.notebook("n: = 3"), "--parameters"), r"n\.ipynb.*parameters",
         "line 1: n: = 3", "correct the cell"),
        ("not a notebook", lambda r: r.cli("run", r.file, "--parameters"), r"a\.txt", "not JSON", "give a Jupyter"),
        ("JSON of something else", lambda r: r.cli("run", r.write("n.ipynb", "{}"), "--parameters"), r"n\.ipynb",
         "not of its format", "give a Jupyter"),
        ("options without notebook", lambda r: r.cli("run", "--parameters"), "notebook", "run", "name"),
    )  # fmt: skip
    tiny = "experiment: true\nfixed: {source: tiny}\n"
    yield from door(
        "tpgm sweep",
        ("grid", lambda r: r.cli("sweep", "seds", "--out", r.folder), "seds", "seds", "seeds"),
        ("no out", lambda r: r.cli("sweep", r.write("g.yaml", tiny)), "--out", "results", "--out FOLDER"),
        ("not YAML", lambda r: r.grid("a: [1"), r"grid\.yaml", "YAML", "line|parsing"),
        ("binary", lambda r: (r.write("b.yaml", b"\xff\xfe\0"), r.cli("sweep", r.folder / "b.yaml", "--out", "x")),
         r"b\.yaml", r"b\.yaml", "text|YAML"),
        ("a list", lambda r: r.grid("[1, 2]"), r"grid\.yaml", "mapping|list", "notebook"),
        ("empty", lambda r: r.grid(""), r"grid\.yaml", "mapping", "notebook"),
        ("key", lambda r: r.grid(tiny + "prodct: {seed: [1]}"), "prodct", "prodct", "product"),
        ("key number", lambda r: r.grid(tiny + "3: {seed: [1]}"), r"grid\.yaml", "3", "product"),
        ("key list", lambda r: r.grid(tiny + "? [a]\n: 3"), r"grid\.yaml", "a", "key|YAML"),
        ("kind missing", lambda r: r.grid("fixed: {seed: 1}"), "section", "none", "experiment"),
        ("product", lambda r: r.grid(tiny + "product: {seed: 3}"), "seed", "3", "list"),
        ("product list", lambda r: r.grid(tiny + "product: [seed]"), "product", r"\['seed'\]", "mapping"),
        ("zip", lambda r: r.grid(tiny + "zip: {seed: [1], size: [8, 9]}"), "zip", "1 of seed, 2 of size", "one length"),
        ("exclude", lambda r: r.grid(tiny + "exclude: [{seed: 9}]"), "exclude", "9", "correct or remove.*seed is set"),
        ("include", lambda r: r.grid(tiny + "include: [3]"), "include", "3", "mapping"),
        ("setting", lambda r: r.grid(tiny + "product: {settings.lrr: [1]}"), "lrr", "lrr", "'lr'"),
        ("setting name number", lambda r: r.grid(tiny + "product: {3: [1]}"), "3", "3", "name|Keys"),
        ("settings null", lambda r: r.grid("experiment: true\nfixed: {settings: null}"), "settings", "None",
         "mapping|dict"),
        ("lr text", lambda r: r.grid(tiny + "product: {settings.lr: [1e-3]}"), "lr", "'1e-3'", r"0\.001"),
        ("lr NaN", lambda r: r.grid(tiny + "product: {settings.lr: [.nan]}"), "lr", "nan", "at least"),
        ("precision", lambda r: r.grid(tiny + "product: {settings.precision: [no]}"), "precision", "False", "quotes"),
        ("method list", lambda r: r.grid(tiny + "product: {method: [[tpgm]]}"), "method", "tpgm", "text|str"),
        ("date", lambda r: r.grid(tiny + "product: {label: [2020-01-01]}"), "label", "2020", "date: put it in quotes"),
        ("twice", lambda r: r.grid(tiny + "experiment: true"), "line", "the key 'experiment' is given twice",
         "give it once"),
        ("notebook", lambda r: r.grid("notebook: 03_ratio"), "03_ratio", "03_ratio", "03_ratios"),
        ("notebook number", lambda r: r.grid("notebook: 3"), "notebook", "3", "name or a path"),
        ("profiles", lambda r: r.grid(tiny + "profiles: [a]"), "profiles", r"\['a'\]", "mapping from names to"),
        ("profile", lambda r: r.grid(tiny, "--profile", "nope"), "profile", "nope", "leave --profile out|add it"),
        ("study", lambda r: r.grid("protocol: resnt"), "study", "resnt", "resnet"),
        ("study null", lambda r: r.grid("protocol: null"), "protocol|study", "None", "resnet|name"),
        ("workers", lambda r: r.grid(tiny, "--workers", "0"), "workers", "0", "at least 1"),
        ("threads", lambda r: r.grid(tiny, "--threads", "many"), "threads", "'many'", "whole number"),
        ("retries", lambda r: r.grid(tiny, "--retries", "-1"), "retries", "-1", "at least 0"),
        ("limit", lambda r: r.grid(tiny, "--limit", "nan"), "limit", "nan", "above 0"),
        ("out a file", lambda r: r.cli("sweep", r.write("g.yaml", tiny), "--out", r.file), r"out|a\.txt", r"a\.txt",
         "folder"),
        ("out of another kind", lambda r: r.cli("sweep", r.write("g.yaml", tiny), "--out", "nope://x"), "--out",
         "nope", "give a folder"),
        ("scheduler missing", lambda r: r.grid(tiny, "--scheduler", "no.json"), "scheduler", r"no\.json",
         "check the path, or start"),
        ("scheduler file", lambda r: r.grid(tiny, "--scheduler", r.write("s.json", "[]")), "scheduler", r"s\.json",
         "give the file"),
    )  # fmt: skip


def tpgm_accuracy(correct: int, total: int) -> Any:
    from tpgm.training.evaluate import Accuracy

    return Accuracy(correct, total).value


def tpgm_mean(parts: dict[str, Any]) -> float:
    from tpgm.training.evaluate import mean_accuracy

    return mean_accuracy(parts)


def experiment() -> Any:
    from tpgm.book.experiments import experiment

    return experiment


def study(name: str) -> Any:
    from tpgm.book.experiments.catalogue import find_study

    return find_study(name)


def store(root: Path) -> Any:
    from tpgm.training.stages import StageStore

    return StageStore(root)


CASES = list(_cases())


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """Class and message of what the door answers."""
    torch.manual_seed(0)
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(100)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.call(Rig(folder))
    except (*MEANT, Told) as error:
        if isinstance(error, KeyError) or type(error).__module__ not in ("builtins", __name__):
            return "obscure", f"{type(error).__name__}: {error}"
        message = str(error)
        if not (re.search(case.argument, message) and re.search(case.value, message)):
            return "obscure", message
        return ("good" if re.search(case.cure, message) else "cause without cure"), message
    except AssertionError as error:
        return "obscure", str(error)
    except (Exception, KeyboardInterrupt) as error:
        return ("traceback" if case.door.startswith("tpgm ") else "obscure"), f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return "accepted silently", ""


def _late(*_: object) -> None:
    raise KeyboardInterrupt("no answer in 100 s")


def test_the_page_counts_them() -> None:
    page = (Path(__file__).parent.parent / "book" / "promises.md").read_text(encoding="utf8")
    assert f"The tests give {len(CASES)} bad inputs to all doors." in page


@pytest.mark.parametrize("case", CASES, ids=[f"{case.door}: {case.name}" for case in CASES])
def test_bad_input_is_answered_with_argument_value_and_cure(case: Case, tmp_path: Path) -> None:
    kind, message = outcome(case, tmp_path)
    print(f"\n{case.door}: {case.name}\n    {message}")
    assert kind == "good", f"{kind}: {message}\nwanted: {case.argument!r}, {case.value!r}, {case.cure!r}"


def test_the_table_is_long_and_every_row_is_another() -> None:
    assert len(CASES) >= 150
    assert len({(case.door, case.name) for case in CASES}) == len(CASES)


def spoiled(state: dict[str, Any], entry: str) -> dict[str, Any]:
    adam, group = state["optimizer"]["state"][0], state["optimizer"]["param_groups"][0]
    if entry in ("step", "exp_avg_sq"):
        adam[entry] = -1 - adam[entry]
    elif entry == "exp_avg":
        adam[entry] = torch.zeros(7)
    elif entry == "norms":
        state["norms"] = [-1 - n for n in state["norms"]]
    elif entry == "anchor":
        state["anchor"] = None
    else:
        group[entry] = {"lr": math.nan, "betas": (0.9, 5.0)}[entry]
    return state


@pytest.mark.parametrize("entry", ["step", "exp_avg", "exp_avg_sq", "norms", "anchor", "lr", "betas"])
def test_a_state_with_an_adam_that_cannot_be_is_refused(entry: str) -> None:
    model = nn.Linear(3, 2)
    constraint = TPGM(model)
    with torch.no_grad():
        model.weight.add_(1)
        model.bias.add_(1)
    constraint.update(lambda: model(torch.ones(1, 3)).sum())
    constraint.load_state_dict(constraint.state_dict())
    before = constraint.radii
    with pytest.raises((ValueError, TypeError), match=r"state"):
        constraint.load_state_dict(spoiled(constraint.state_dict(), entry))
    assert constraint.radii == before


def test_doors_that_answered_in_torchs_words() -> None:
    model, ones = nn.Linear(3, 2), torch.ones(2, 3)
    constraint = TPGM(model)
    with pytest.raises(ValueError, match=r"anchor_device .*'meta'.*no numbers"):
        TPGM(model, anchor_device="meta")
    with pytest.raises(ValueError, match=r"a real loss.*real part"):
        constraint.update(lambda: model(ones).sum() * 1j)
    for updates in ("a", math.nan, True, 1.5):
        with pytest.raises(ValueError, match=r"updates must be a whole number"):
            constraint.suggest_lr(updates)  # type: ignore[arg-type]
    for weight, anchor in ((ones.to_sparse(), ones), (ones, ones.to_sparse())):
        with pytest.raises(TypeError, match=r"dense tensor.*to_dense"):
            project(weight, anchor, 1.0)
    with pytest.raises(ValueError, match=r"radius must be one number.*complex64"):
        project(ones, ones, torch.tensor(1j))


if __name__ == "__main__":
    found: Counter[str] = Counter()
    for one in CASES:
        with tempfile.TemporaryDirectory() as place:
            sort, text = outcome(one, Path(place))
        found[sort] += 1
        if sort != "good" or "-v" in sys.argv:
            print(f"{sort:20s} {one.door}: {one.name}\n    {text[:300]}")
    print(len(CASES), dict(found))

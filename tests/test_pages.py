"""Code on the pages "TPGM in five minutes" and "Recipes": every snippet runs as it is printed."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tpgm
from tests.test_inference import painted
from tests.test_repository import load_tool
from tpgm.cli import main

BOOK = Path(__file__).resolve().parent.parent / "book"
FIVE, RECIPES = BOOK / "five_minutes.md", BOOK / "recipes.md"


def blocks(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf8"), re.DOTALL | re.MULTILINE)


def recipe(label: str) -> str:
    """The code under a label of the page of recipes."""
    section = RECIPES.read_text(encoding="utf8").split(f"(recipe-{label})=")[1].split("\n(recipe-")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return str(code)


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "page", "exec"), names)
    return names


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.norm(self.body(x))))
        return logits


@pytest.fixture
def own() -> dict[str, Any]:
    """The names that the pages say the reader brings."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 4), torch.arange(64) % 3)
    model = Net()
    return {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": nn.functional.cross_entropy,
        "train_loader": DataLoader(data, batch_size=16),
        "val_loader": DataLoader(data, batch_size=32),
        "val_batches": itertools.cycle(DataLoader(data, batch_size=32)),
    }


# --- five minutes


def test_commands_of_five_minutes_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, colour, number in itertools.product(("photos", "sketches"), ("blue", "green", "red"), range(6)):
        painted(Path(folder) / {"blue": "bus", "green": "car", "red": "tram"}[colour] / f"{number}.png", colour)
    text = "".join(blocks(FIVE, "bash")).replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("pip ")]
    assert [shlex.split(line)[:2] for line in lines] == [["tpgm", c] for c in ("finetune", "predict", "evaluate")]
    # a run of seconds: everything else as printed
    for line, shorter in zip(lines, (["--set", "epochs=1", "--set", "updates=2", "--quiet"], [], []), strict=True):
        assert main([*shlex.split(line)[1:], *shorter]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("sketches", "class_2", "macro-F1"))


def test_python_of_five_minutes_runs_in_its_order(own: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    del own["val_batches"]
    for block in blocks(FIVE):
        run(block, own)
    assert set(own["constraint"].radii) == {"body.weight", "body.bias", "norm.weight", "norm.bias"}
    assert "body" in capsys.readouterr().out
    assert own["pretrained"]["body.weight"].shape == own["model"].body.weight.shape


# --- the first cell of every chapter


@pytest.mark.parametrize("works", [True, False])
def test_the_first_cell_stops_with_a_clear_word_if_the_install_failed(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = load_tool("notebooks").colab_cell("https://example.org/us/tpgm")
    installed: list[str] = []
    find = importlib.util.find_spec

    def found(name: str, *rest: Any) -> Any:
        return find(name, *rest) if name != "tpgm" or (installed and works) else None

    monkeypatch.setattr(importlib.util, "find_spec", found)
    code = re.sub("%pip (.*)", lambda command: f"installed.append({command[1]!r})", cell)
    if works:
        run(code, {"installed": installed})
    else:
        with pytest.raises(RuntimeError, match="could not be installed from https"):
            run(code, {"installed": installed})
    assert installed == ['install -q "tpgm[notebooks] @ git+https://example.org/us/tpgm"']


# --- recipes


def test_there_is_a_recipe_for_each_line_of_the_table() -> None:
    text = RECIPES.read_text(encoding="utf8")
    assert set(re.findall(r"\]\(#recipe-(\w+)\)", text)) == set(re.findall(r"^\(recipe-(\w+)\)=", text, re.MULTILINE))
    assert len(blocks(RECIPES)) == 5


def test_the_loop_runs(own: dict[str, Any]) -> None:
    del own["val_batches"]
    names = run(recipe("loop"), own)
    assert min(names["constraint"].ratios().values()) < 1
    assert names["scheduler"].last_epoch == 2 * len(names["train_loader"])
    first = [x for x, _ in itertools.islice(names["endless"](own["val_loader"]), 5)]
    assert torch.equal(first[0], first[2]), "endless begins anew"


def test_the_recipe_for_the_trainer_runs(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra transformers")
    from tests.test_integrations_transformers import Items, trainer_in

    host = trainer_in(tmp_path)
    names = {"model": host.model, "args": host.args, "train": Items(64, 1), "validation": Items(24, 2)}
    callback = run(recipe("trainer"), names)["callback"]
    assert min(callback.constraint.ratios().values()) < 1
    assert not any("classifier" in name for name in callback.constraint.radii)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_the_recipe_for_lightning_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="needs the extra lightning")
    from tests.test_integrations_lightning import Module, data

    monkeypatch.chdir(tmp_path)
    names = {"module": Module(), "validation": data(24, 2), "train_loader": DataLoader(data(64, 1), batch_size=8)}
    callback = run(recipe("lightning"), names)["callback"]
    assert min(callback.constraint.ratios().values()) < 1
    assert not any("head" in name for name in callback.constraint.radii)


def test_the_recipe_for_accelerate_runs(own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="needs the extra train")
    monkeypatch.chdir(tmp_path)
    names = run(recipe("accelerate"), own)
    assert min(names["constraint"].ratios().values()) < 1
    assert Path("accelerated").is_dir()


def lora_targets() -> list[str]:
    found = re.search(r"target_modules=\[([^\]]*)\]", recipe("lora"))
    assert found is not None
    return re.findall(r'"([^"]+)"', found[1])


def test_the_names_in_the_recipe_for_lora_are_attention_layers_of_a_current_vit() -> None:
    timm = pytest.importorskip("timm", reason="needs the extra models")
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", num_classes=10)
    layers = [name for name, module in vit.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for target in lora_targets():
        fits = [name for name in layers if name.endswith(f".{target}")]
        assert fits == [f"blocks.{n}.{target}" for n in range(12)]


def test_the_recipe_for_lora_constrains_b_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="needs peft")
    timm = pytest.importorskip("timm", reason="needs the extra models")
    create = timm.create_model

    def small(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        assert pretrained, "the recipe starts from trained weights, which are not fetched here"
        vit: nn.Module = create(name, depth=2, embed_dim=24, num_heads=2, **options)
        return vit

    monkeypatch.setattr(timm, "create_model", small)
    names = run(recipe("lora"), {})
    constraint: tpgm.TPGM = names["constraint"]
    assert len(constraint.radii) == 2 * len(lora_targets())
    assert all("lora_B" in name and ".attn." in name for name in constraint.radii)
    images, labels = torch.randn(4, 3, 224, 224), torch.arange(4)
    trained = [p for p in names["model"].parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(names["model"](images), labels).backward()
        optimizer.step()
    constraint.update(lambda: nn.functional.cross_entropy(names["model"](images), labels))
    constraint.project_()
    assert len(constraint.ratios()) == len(constraint.radii)
    assert min(constraint.ratios().values()) < 1

"""What holds for the repository as a whole: one public address, no private paths, documents whose code runs."""

from __future__ import annotations

import importlib.util
import itertools
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image as mpimg
import pytest
import torch
import yaml
from torch import nn

import tpgm
from tests.test_inference import finished_run, painted

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def load_tool(name: str, folder: str = "tools") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


notebooks = load_tool("notebooks")


def tracked() -> list[Path]:
    """Files that git knows or would add; without git (an unpacked sdist) the test that asks is skipped."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> dict[Path, str]:
    found = {}
    for path in tracked():
        try:
            found[path.relative_to(ROOT)] = path.read_text(encoding="utf8")
        except UnicodeDecodeError:
            continue
    return found


# --- one address


def test_generated_parts_agree_with_the_configured_address() -> None:
    stale = [path.name for path, text in notebooks.wanted().items() if path.read_text(encoding="utf8") != text]
    assert not stale, f"run: python tools/notebooks.py sync ({', '.join(stale)})"


def test_the_address_follows_the_configuration(tmp_path: Path) -> None:
    for name in ("README.md", "CITATION.cff"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf8"), encoding="utf8")
    (tmp_path / "_config.yml").write_text("repository: {url: 'https://example.org/us/tpgm', branch: dev}\n")
    old, _ = notebooks.repository()
    for path, text in notebooks.wanted(tmp_path).items():
        assert "https://example.org/us/tpgm" in text, path.name
        assert old not in text, f"{path.name} names the address outside its generated parts"


def test_no_page_has_an_unfilled_mark() -> None:
    """No page, no text that the package or a tool puts into one, and no page of a build that is there."""
    mark = re.compile(r"@@\w+@@|\bTODO\b|\bTBD\b")
    written = {".md", ".ipynb", ".bib", ".cff", ".yml", ".html", ".toml"}
    pages = {p: t for p, t in texts().items() if p.suffix in written or p.parts[0] in ("tpgm", "tools", "book")}
    pages |= {p: p.read_text(encoding="utf8") for p in (ROOT / "_build" / "html").rglob("*.html")}
    assert {".md", ".ipynb", ".py"} <= {p.suffix for p in pages}
    assert len(pages) > 100
    assert {str(p): found for p, text in pages.items() if (found := mark.findall(text))} == {}
    assert mark.findall("As @@RESULTS@@ show") == ["@@RESULTS@@"]


def test_nothing_else_names_the_address() -> None:
    url, _ = notebooks.repository()
    owner_and_name = "/".join(url.split("/")[-2:])
    allowed = {Path("_config.yml"), Path("README.md"), Path("CITATION.cff")}
    found = [p for p, text in texts().items() if owner_and_name in text and p not in allowed and p.suffix != ".ipynb"]
    assert not found, f"take it from _config.yml instead: {found}"


def test_no_path_of_a_private_machine() -> None:
    private = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt|tmp)/\w+")
    found = [f"{path}: {match[0]}" for path, text in texts().items() for match in private.finditer(text)]
    assert not found


# --- the book's table of contents and the commands


def test_table_of_contents_names_existing_files_and_every_chapter() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    chapters = [entry for part in toc["parts"] for entry in part["chapters"]]
    files = [toc["root"], *(page["file"] for chapter in chapters for page in (chapter, *chapter.get("sections", ())))]
    assert len(files) == len(set(files))
    for name in files:
        assert any((ROOT / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb")), name
    pages = {p.relative_to(ROOT).with_suffix("").as_posix() for p in (ROOT / "book").glob("*.md")}
    chapters = {p.relative_to(ROOT).with_suffix("").as_posix() for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert pages | chapters == set(files)


def test_the_reference_names_only_what_exists_and_every_public_name() -> None:
    pages = {name: (ROOT / "book" / f"{name}.md").read_text(encoding="utf8") for name in ("api", "api_chapters")}
    directive = re.compile(r"^\.\. auto(module|class|function):: (\S+)$", re.MULTILINE)
    found = {name: directive.findall(text) for name, text in pages.items()}
    for kind, name in found["api"] + found["api_chapters"]:
        assert isinstance(pkgutil.resolve_name(name), ModuleType) == (kind == "module"), name
    named = {name for _, name in found["api"]}
    assert {f"tpgm.{name}" for name in tpgm.__all__} <= named
    assert "tpgm.book" not in pages["api"]
    assert all(name.startswith("tpgm.book") for _, name in found["api_chapters"])


def test_links_in_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf8")):
        assert (ROOT / target).exists(), target


def test_the_readme_shows_a_figure_that_its_script_draws(tmp_path: Path) -> None:
    figure = load_tool("readme_figure")
    committed = figure.TARGET
    assert f"]({committed.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text(encoding="utf8")
    figure.main(tmp_path / "again.png")
    again, before = (mpimg.imread(path)[..., :3] for path in (tmp_path / "again.png", committed))
    # another version of matplotlib may set letters a little differently
    assert again.shape == before.shape
    assert abs(again - before).mean() < 0.02, "run: python tools/readme_figure.py"


@pytest.mark.parametrize("name", ["check", "test", "book"])
def test_workflows_call_the_same_targets_as_readers_do(name: str) -> None:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf8")
    jobs = yaml.safe_load(text)["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert [command.split()[:2] for command in commands] == [["make", name]]
    assert re.search(rf"^{name}:.*##", (ROOT / "Makefile").read_text(encoding="utf8"), re.MULTILINE)
    assert f"make {name}" in (ROOT / ".ci" / "run").read_text(encoding="utf8")


def test_a_change_must_pass_the_checks_the_strict_book_and_the_tests_in_this_order() -> None:
    steps = re.findall(r"^make (.+?) </dev/null \|\| status=1$", (ROOT / ".ci" / "run").read_text("utf8"), re.MULTILINE)
    assert steps == ["check", "book STRICT=1", "test"]
    workflow = (ROOT / ".github" / "workflows" / "book.yml").read_text("utf8")
    assert "make book STRICT=1" in workflow


def test_the_checks_are_ruff_and_mypy_over_the_whole_package_also_before_a_commit() -> None:
    makefile = (ROOT / "Makefile").read_text("utf8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    tools = [line.strip().removeprefix("$(BIN)/python -m ") for line in recipe[1].splitlines()]
    assert tools == ["ruff check .", "ruff format --check .", "mypy --strict tpgm"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf8"))["repos"][0]["hooks"]
    entries = {hook["id"]: hook["entry"] for hook in hooks}
    assert entries["mypy"] == f".venv/bin/python -m {tools[2]}"
    assert {"ruff-check", "ruff-format"} <= set(entries)


def test_tested_python_versions_are_those_the_package_names() -> None:
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf8"))
    versions = matrix["jobs"]["test"]["strategy"]["matrix"]["python"]
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf8"))
    assert versions == classifiers


# --- code in documents


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.body(x)))


@pytest.fixture
def readers_own() -> dict[str, Any]:
    """The names that the documents say the reader brings."""
    generator = torch.Generator().manual_seed(0)
    model = Net()
    batches = [(torch.randn(16, 4, generator=generator), torch.arange(16) % 3) for _ in range(8)]
    return {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": nn.functional.cross_entropy,
        "train_loader": batches[:4],
        "val_batches": itertools.cycle(batches[4:]),
        "evaluate": lambda model: float((model(batches[0][0]).argmax(1) == batches[0][1]).float().mean()),
    }


def run(document: str, names: dict[str, Any]) -> dict[str, Any]:
    blocks = BLOCK.findall((ROOT / document).read_text(encoding="utf8"))
    assert blocks, f"{document} shows no code"
    for block in blocks:
        exec(compile(block, document, "exec"), names)
    return names


def test_readme_code_runs_and_constrains_the_model(readers_own: dict[str, Any]) -> None:
    start = {name: tensor.clone() for name, tensor in readers_own["model"].state_dict().items()}
    names = run("README.md", readers_own)
    constraint: tpgm.TPGM = names["constraint"]
    assert set(constraint.radii) == {"body.weight", "body.bias"}
    moved = readers_own["model"].state_dict()
    for name, radius in constraint.radii.items():
        displacement = (moved[name] - start[name]).reshape(len(moved[name]) if "weight" in name else 1, -1)
        assert 0 < displacement.abs().sum(dim=1).max() <= radius * (1 + 1e-4)
    assert not torch.equal(moved["head.weight"], start["head.weight"])
    assert min(constraint.ratios().values()) < 1


def test_code_of_the_page_use_it_runs(
    readers_own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(readers_own["model"].state_dict(), "pretrained.pt")
    finished_run(Path("runs/mine"))
    for number, colour in enumerate(("blue", "green", "red")):
        painted(Path("drawings") / colour / "0.png", colour)
        painted(Path("photos/new") / f"{number}.png", colour)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        names = run("book/use_it.md", readers_own)
    finally:
        torch.distributed.destroy_process_group()
    assert "body.weight" in capsys.readouterr().out
    assert not torch.equal(names["halfway"].body.weight, names["model"].body.weight)
    assert "head.weight" not in names["constraint"].radii
    assert len(names["answers"]) == names["found"].accuracy.total == 3
    assert Path("worst.png").is_file()


@pytest.mark.parametrize("script", sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_finds_what_it_imports(script: str) -> None:
    assert callable(load_tool(script, "benchmarks").main)

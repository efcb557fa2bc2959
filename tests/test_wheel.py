"""What `python -m build` puts into the wheel, and what installing it asks for."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest

pytest.importorskip("build", reason="needs build")

ROOT = Path(__file__).resolve().parent.parent
PLACES = {"results": "tpgm/_results", "notebooks": "tpgm/_notebooks", "experiments": "tpgm/_experiments"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(wheel.read(name))


def test_it_holds_the_package_the_rows_and_the_chapters_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "tpgm", *PLACES]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    known = [name for name in listing.split("\0") if name and (ROOT / name).is_file()]
    expected = {PLACES.get(first, first) + slash + rest for first, slash, rest in (n.partition("/") for n in known)}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected
    for name in ("tpgm/py.typed", "tpgm/_results/resnet-upstream.jsonl", "tpgm/_notebooks/01_problem.ipynb"):
        assert name in found
    assert sum(info.compress_size for info in wheel.infolist()) < 60 * 2**20


def test_the_core_asks_for_torch_and_numpy_only(wheel: zipfile.ZipFile) -> None:
    about = metadata(wheel)
    needed = [r for r in about.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert sorted(re.match(r"[\w-]+", r)[0] for r in needed) == ["numpy", "torch"]  # type: ignore[index]
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "MIT"
    assert {"text", "transformers", "lightning"} <= set(about.get_all("Provides-Extra", []))
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_a_command_that_needs_more_than_the_core_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['accelerate'] = None\n"
        "from tpgm.cli import main\n"
        "sys.exit(main(['finetune', 'icons-resnet', 'icons', '--out', 'x']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "accelerate" in done.stderr
    assert "pip install 'tpgm[train]'" in done.stderr
    assert "Traceback" not in done.stderr

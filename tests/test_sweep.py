"""Sweeps: what a grid becomes, what is on disk after kills, failures and retries."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from distributed.protocol.pickle import dumps

from tpgm.book.experiments import experiment
from tpgm.book.sweep import Job, Store, read_grid, sweep
from tpgm.book.sweep.cluster import connect, plan_workers
from tpgm.book.sweep.grid import expand
from tpgm.book.sweep.notebooks import chapters, checked, declared, parse, run_notebook
from tpgm.cli import main
from tpgm.files import sealed, unsealed

ROOT = Path(__file__).resolve().parent.parent
REAL = """
experiment: true
fixed:
  {source: tiny, train_per_class: 2, val_per_class: 1, size: 32, method: linear-probe,
   settings: {epochs: 1, batch_size: 32}}
product: {seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], settings.lr: [0.001, 0.003]}
"""


def notebook(path: Path, code: str) -> Path:
    cells = [
        nbformat.v4.new_code_cell('seed: int = 0  # of nothing\nkind: str = \'a\'  # one of "a", "b"'),
        nbformat.v4.new_code_cell(code),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made.metadata["language_info"] = {"name": "python"}
    nbformat.write(made, path)
    return path


# --- grids


def test_a_grid_is_products_zips_includes_without_excludes() -> None:
    section = {
        "fixed": {"settings": {"lr": 1.0, "epochs": 2}},
        "product": {"seed": [0, 1]},
        "zip": {"a": [1, 2], "settings.lr": [0.1, 0.2]},
        "exclude": [{"seed": 1, "a": 2}],
        "include": [{"seed": 9}],
    }
    assert list(expand(section)) == [
        {"settings": {"lr": 0.1, "epochs": 2}, "seed": 0, "a": 1},
        {"settings": {"lr": 0.2, "epochs": 2}, "seed": 0, "a": 2},
        {"settings": {"lr": 0.1, "epochs": 2}, "seed": 1, "a": 1},
        {"settings": {"lr": 1.0, "epochs": 2}, "seed": 9},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must hold a mapping"),
        ("experiment: [", "no YAML"),
        ("fixed: {}", "exactly one of notebook, experiment, protocol"),
        ("{experiment: true, prodct: {}}", "unknown key 'prodct'"),
        ("{experiment: true, product: {seed: 3}}", "seed needs a list"),
        ("{experiment: true, zip: {seed: [1], size: [1, 2]}}", "of one length"),
        ("{experiment: true, product: {sed: [1]}}", "did you mean 'seed'"),
        ("{experiment: true, product: {method: [tpgn]}}", "did you mean 'tpgm'"),
        ("{experiment: true, product: {seed: [1]}, exclude: [{seed: 2}]}", "no run agrees"),
        ("{notebook: 03_ratio}", "did you mean '03_ratios'"),
        ("{notebook: 03_ratios, product: {seed: [a]}}", "seed must be of type int"),
        ("{notebook: 03_ratios, fixed: {profile: tiny}}", "choose one of smoke, quick, full"),
        ("{protocol: resnet:moon}", "resnet:upstream"),
        ("{protocol: text, fixed: {seed: 1}}", "leave out fixed"),
        ("{experiment: true, fixed: {settings: {lr: 1e-3}}}", "YAML reads 1e-3 as text: write 0.001"),
        ("{experiment: true, product: {settings.weight_decay: [0.1, 5E-4]}}", "write 0.0005"),
        ("{experiment: true, fixed: {settings: {precision: no}}}", "YAML reads no, off, yes and on"),
        ("{experiment: true, fixed: {label: on}}", "put the word in quotes"),
        ("{notebook: 03_ratios, fixed: {profile: yes}}", "put the word in quotes"),
        ("{experiment: true, fixed: {seed: 1, size: 2, seed: 3}}", "the key 'seed' is given twice: give it once"),
        ("experiment: true\nproduct: {seed: [1]}\nproduct: {seed: [2]}", "line 1: the key 'product' is given twice"),
        ("runs: [{experiment: true}, {experiment: 1}]", "section 2"),
    ],
)
def test_a_bad_grid_is_refused_before_any_work(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read_grid(path)


@pytest.mark.parametrize("name", sorted(chapters("experiments", "yaml")))
def test_the_grids_of_the_package_are_whole(name: str) -> None:
    assert read_grid(name).due()


def test_the_protocol_goes_on_when_the_search_has_rows() -> None:
    plan = read_grid("resnet-upstream")
    first = plan.due()
    rows = [{"config": job.parameters, "val": 0.5} for job in first]
    after = plan.due(rows)
    assert len(after) > len(first)
    assert {job.parameters["seed"] for job in first} == {0}
    assert {job.parameters["seed"] for job in after} == {0, 1, 2}
    everything = [{"config": job.parameters, "val": 0.5} for job in after]
    assert {job.name for job in plan.due(everything)} == {job.name for job in after}


def test_names_follow_all_that_decides_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = notebook(tmp_path / "n.ipynb", "print(seed)")
    name = Job.of_notebook(path, {}).name
    assert Job.of_notebook(path, {"seed": 0}).name == name
    assert Job.of_notebook(path, {"seed": 1}).name != name
    notebook(path, "print(seed + 1)")
    assert Job.of_notebook(path, {}).name != name
    one = Job.of_experiment({"seed": 1}).name
    assert Job.of_experiment({"seed": 1, "label": "mine"}).name == one
    monkeypatch.setattr("tpgm.book.sweep.jobs.version", lambda _: "9.9")
    assert Job.of_experiment({"seed": 1}).name != one


# --- parameters and commands


def test_parameters_come_from_the_notebook_itself(tmp_path: Path) -> None:
    path = notebook(tmp_path / "n.ipynb", "")
    assert declared(path)["kind"].choices == ("a", "b")
    assert parse(path, {"seed": "3", "kind": "b"}) == {"seed": 3, "kind": "b"}
    for given, message in ({"sed": "1"}, "did you mean 'seed'"), ({"seed": "x"}, "type int"), ({"kind": "c"}, "a, b"):
        with pytest.raises(ValueError, match=message):
            parse(path, given)


def given_cell(path: Path, parameters: str, code: str = "") -> Path:
    """A notebook whose cell of parameters is this text."""
    notebook(path, code)
    made = nbformat.read(path, as_version=4)
    made.cells[0].source = parameters
    nbformat.write(made, path)
    return path


@pytest.mark.parametrize(
    ("line", "good", "bad"),
    [
        ("limit = None", (5, "a", None, [1]), ()),
        ("limit: int | None = None  # of time", (5, None), ("a", 1.5)),
        ("limit: 'str | None' = 'x'", ("y", None, 3), ()),  # an annotation in quotes is not read
        ("limit: float = 2", (1, 2.5), ("a", True)),
        ("limit: list[int] = [1]", ([2], []), ((1,), 3)),
        ("limit = -1", (3, -3), ("a", 1.5, True)),
        ("limit = (1, 2)", ((3,),), ([1], 3)),
        ("limit = 2 * 50", (7, "seven"), ()),
        ("limit = Path('x')", ("y",), ()),
        ("limit: Path = Path('x')", ("y",), ()),
        ("%matplotlib inline\nlimit = 1", (2,), ("a",)),
    ],
)
def test_only_what_is_given_is_checked(line: str, good: tuple[Any, ...], bad: tuple[Any, ...], tmp_path: Path) -> None:
    path = given_cell(tmp_path / "n.ipynb", f"{line}\nother = print")
    for value in good:
        assert checked(path, {"limit": value})[0] == {"limit": value}
    for value in bad:
        with pytest.raises(ValueError, match="limit must be"):
            checked(path, {"limit": value})
    assert checked(path, {})[0] == {}
    assert checked(path, {})[1]["other"] == "print"
    json.dumps(Job.of_notebook(path, {}).parameters)


def test_defaults_that_are_no_literals_run_alone_and_in_a_sweep(tmp_path: Path) -> None:
    cell = "from pathlib import Path\nplace = Path('x')\ncount = 2 * 50\npair = (1, 2)\nsign = -1\nseed: int = 0"
    code = "from tpgm.book.notebook import record\nrecord(all=[str(place), count, list(pair), sign, seed])"
    given_cell(tmp_path / "n.ipynb", cell, code)
    (tmp_path / "grid.yaml").write_text("{notebook: n.ipynb, product: {seed: [3]}}")
    report = sweep(read_grid(tmp_path / "grid.yaml"), tmp_path / "out", workers=1, progress=False)
    assert not report.errors
    (row,) = report.rows
    assert row["recorded"] == {"all": ["x", 100, [1, 2], -1, 3]}
    assert row["parameters"]["seed"] == 3
    assert row["parameters"]["count"] == "2 * 50"


class Spliced(str):
    def __str__(self) -> str:
        return "0\nraise SystemExit"


@pytest.mark.parametrize(
    "value", [Spliced("x"), [Spliced("x")], {"a": Spliced("x")}, {Spliced("a"): 1}, object(), float("nan"), Path("x")]
)
def test_a_value_that_is_no_literal_never_reaches_a_notebook(value: Any, tmp_path: Path) -> None:
    path = given_cell(tmp_path / "n.ipynb", "any_kind = None")
    with pytest.raises(ValueError, match="made of numbers, texts"):
        run_notebook(path, tmp_path / "out.ipynb", {"any_kind": value})


def test_text_with_code_in_it_stays_text(tmp_path: Path) -> None:
    path = given_cell(tmp_path / "n.ipynb", "word = ''", "print('word is', repr(word))")
    word = '\'\n"""\\\'); raise SystemExit  # \u2028'
    run_notebook(path, tmp_path / "out.ipynb", {"word": word})
    output = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs[0].text
    assert output.strip() == f"word is {word!r}"


@pytest.mark.parametrize("where", ["run", "sweep"])
def test_a_notebook_reads_and_imports_what_lies_beside_it(where: str, tmp_path: Path) -> None:
    code = "import helper, pathlib\nassert helper.two == 2\nassert pathlib.Path('data.csv').read_text() == 'a,b'\n"
    path = notebook(
        tmp_path / "n.ipynb", code + "assert pathlib.Path('sub/deep.txt').exists()\nopen('new', 'w').close()"
    )
    (tmp_path / "helper.py").write_text("two = 2")
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.txt").touch()
    if where == "run":
        assert main(["run", str(path), "--out", str(tmp_path / "out" / "o.ipynb"), "--quiet"]) == 0
    else:
        (tmp_path / "grid.yaml").write_text("{notebook: n.ipynb}")
        report = sweep(read_grid(tmp_path / "grid.yaml"), tmp_path / "out", workers=1, progress=False, retries=0)
        assert not report.errors
    assert not (tmp_path / "new").exists(), "what it writes is its own"


@pytest.mark.parametrize(
    ("code", "limit"), [("import os\nos._exit(9)", "60"), ("import time\ntime.sleep(600)", "5")], ids=["dead", "hung"]
)
def test_a_kernel_that_dies_or_hangs_leaves_the_partial_notebook(
    code: str, limit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = notebook(tmp_path / "n.ipynb", f"print('came so far')\n{code}"), tmp_path / "o.ipynb"
    began = time.monotonic()
    assert main(["run", str(path), "--out", str(out), "--quiet", "--limit", limit]) == 1
    assert time.monotonic() - began < 50
    assert "o.failed.ipynb" in capsys.readouterr().err
    assert not out.exists()
    failed = nbformat.read(out.with_suffix(".failed.ipynb"), as_version=4)
    assert "came so far" in failed.cells[-1].source
    assert failed.cells[0].execution_count == 1


def test_a_long_temporary_folder_does_not_break_the_kernels_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    path = notebook(tmp_path / "n.ipynb", "print(seed)")
    run_notebook(path, tmp_path / "o.ipynb")
    assert (tmp_path / "o.ipynb").exists()


def test_run_writes_a_notebook_or_says_which_cell_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = notebook(tmp_path / "good.ipynb", "print('seed is', seed)")
    assert main(["run", str(good), "-p", "seed", "3", "--out", str(tmp_path / "out.ipynb"), "--quiet"]) == 0
    assert "seed is 3" in (tmp_path / "out.ipynb").read_text()
    bad = notebook(tmp_path / "bad.ipynb", "1 / 0")
    assert main(["run", str(bad), "--out", str(tmp_path / "none.ipynb"), "--quiet"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not (tmp_path / "none.ipynb").exists()
    assert "ZeroDivisionError" in (tmp_path / "none.failed.ipynb").read_text()


def test_data_and_completion_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for what, word in ("counts", "outline"), ("licences", "CC0-1.0"), ("splits", "ID test"), ("build", "SHA-256"):
        assert main(["data", what, "--source", "tiny", "--quiet"]) == 0
        assert word in capsys.readouterr().out
    assert main(["completion", "bash"]) == 0
    assert subprocess.run(["bash", "-n"], input=capsys.readouterr().out, text=True, check=False).returncode == 0


# --- sweeps


def test_what_fails_is_retried_then_reported_with_the_cells_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook(
        tmp_path / "n.ipynb",
        "from tpgm.book.notebook import record\nrecord(twice=2 * seed)\nassert seed != 1, 'not one'",
    )
    (tmp_path / "grid.yaml").write_text("{notebook: n.ipynb, product: {seed: [0, 1, 2]}}")
    out = tmp_path / "out"
    assert main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(out), "--workers", "1", "--retries", "2"]) == 1
    printed = capsys.readouterr()
    assert "2 done (0 of them before), 1 failed" in printed.out
    assert "AssertionError: not one" in printed.err
    rows = experiment.read(out / "rows.jsonl")
    assert [row["recorded"] for row in rows] == [{"twice": 0}, {"twice": 4}]
    bad = next(job.name for job in read_grid(tmp_path / "grid.yaml").jobs if job.parameters["seed"] == 1)
    counts = Counter(note["what"] for note in Store(out).notes(bad))
    assert counts == {"started": 3, "failed": 3}
    assert "AssertionError" in (out / bad / "notebook.ipynb").read_text()
    assert "AssertionError" in (out / bad / "error.txt").read_text()


def test_a_store_behind_a_url(tmp_path: Path) -> None:
    store = Store("memory://sweep")
    (tmp_path / "row.json").write_text(sealed('{"run": "a"}'))
    store.note("a", "started", "1")
    assert not store.is_done("a")
    store.publish("a", tmp_path, good=True)
    assert store.done() == {"a"}
    assert store.gather([]) == [{"run": "a"}]


BAD = Job.of_experiment({"seed": 2}).name


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", sealed('{"run": "other"}').encode()),
        f'{{"run": "{BAD}"}}'.encode(),  # nothing says that it is whole
        sealed(f'{{"run": "{BAD}", "id": 0.5}}').replace("0.5", "0.7").encode(),
        sealed(f'{{"run": "{BAD}"}}').replace('"format": 1', '"format": 2').encode(),
    ],
)
def test_a_broken_row_is_named_and_its_run_is_due_again(content: bytes, tmp_path: Path) -> None:
    good, bad = Job.of_experiment({"seed": 1}).name, BAD
    store = Store(tmp_path)
    store.write(sealed(json.dumps({"run": good})).encode(), good, "row.json")
    store.write(content, bad, "row.json")
    with pytest.warns(UserWarning, match=rf"{bad}/row\.json holds no row"):
        assert store.gather([]) == [{"run": good}]
    assert store.done() == {good}
    assert (tmp_path / bad / "row.json.broken").read_bytes() == content
    assert store.gather([bad, good]) == [{"run": good}]


def test_a_broken_row_of_an_experiments_own_folder_is_written_anew(tmp_path: Path) -> None:
    config = {"source": "tiny", "train_per_class": 2, "val_per_class": 1, "size": 32, "method": "linear-probe"}
    config |= {"settings": {"epochs": 1, "batch_size": 32}}
    (tmp_path / "row.json").write_text("{")
    with pytest.warns(UserWarning, match=r"row\.json holds no row"):
        row = experiment.run(config, out=tmp_path)
    assert unsealed((tmp_path / "row.json").read_bytes(), "row.json") == row
    (tmp_path / "row.json").write_text(sealed(json.dumps({**row, "id": 0.0})).replace('"id": 0.0', '"id": 1.0'))
    with (
        pytest.warns(UserWarning, match=r"holds no row: it is damaged: its checksum is wrong or missing"),
        pytest.raises(FileExistsError),
    ):
        experiment.run(config, out=tmp_path)


def test_killed_between_result_and_row_a_run_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"source": "tiny", "train_per_class": 2, "val_per_class": 1, "size": 32, "method": "linear-probe"}
    config |= {"settings": {"epochs": 1, "batch_size": 32}}
    expected = experiment.run(config)

    def killed(*_: object) -> Any:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "provenance", killed)
        with pytest.raises(SystemExit):
            experiment.run(config, out=tmp_path)
    assert (tmp_path / "result.json").exists()
    with pytest.raises(FileExistsError, match="finished run"):  # another run's: it is not ours to replace
        experiment.run({**config, "seed": 1}, out=tmp_path)
    row = experiment.run(config, out=tmp_path)
    assert row["accuracies"] == expected["accuracies"]
    assert row["history"] == expected["history"]
    assert experiment.run(config, out=tmp_path) == row


# --- who can reach the workers


def listening(process: psutil.Process) -> list[str]:
    family = [process, *process.children(recursive=True)]
    return [c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]


def test_the_workers_of_a_sweep_listen_on_loopback_only_and_know_who_calls() -> None:
    import asyncio

    from distributed import rpc
    from distributed.security import Security

    async def pid(address: str, **how: Any) -> Any:
        async with rpc(address, **how) as process:
            return await process.run(function=dumps(os.getpid))

    def asked(address: str, **how: Any) -> Any:
        return asyncio.run(asyncio.wait_for(pid(address, **how), 20))

    with connect(None, 2, 1) as (client, _, _):
        workers = [*client.scheduler_info(n_workers=-1)["workers"]]
        assert len({client.submit(os.getpid, key=f"{n}", workers=[w]).result() for n, w in enumerate(workers)}) == 2
        found = listening(psutil.Process())
        assert len(found) >= 2 * 2 + 1, "scheduler, workers and nannies"
        assert set(found) == {"127.0.0.1"}
        ours, strangers = (s.get_connection_args("worker") for s in (client.security, Security.temporary()))
        assert asked(workers[0], connection_args=ours)["status"] == "OK", "whoever has the key runs code"
        for address in (client.scheduler.address, *workers):
            assert address.startswith("tls://127.0.0.1:")
            for place, how in (
                (address.replace("tls://", "tcp://"), {}),
                (address, {"connection_args": strangers}),
            ):
                with pytest.raises(OSError, match=r"(?i)closed|certificate|established|handshake"):
                    asked(place, **how)


STRANGER = """
import json, socket, ssl, sys
pids, ports, key = json.loads(sys.stdin.read())
got = []
for pid in pids:
    for name in ("environ", "mem", "cwd/.", "fd/0"):
        try:
            if open(f"/proc/{pid}/{name}", "rb").read(1):
                got.append(f"{name} of {pid}")
        except OSError:
            pass
    if key in open(f"/proc/{pid}/cmdline", errors="replace").read():
        got.append(f"the key in the command of {pid}")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
for port in ports:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as raw, context.wrap_socket(raw) as link:
            link.settimeout(5)
            if link.recv(1):  # a scheduler or worker speaks first, to those whom it lets in
                got.append(f"an answer at {port}")
    except TimeoutError:
        got.append(f"silence instead of a refusal at {port}")
    except OSError:
        pass
print(json.dumps(got))
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_finds_no_key_and_no_door() -> None:
    """Without a certificate: neither the key, in memory, files or commands of the processes, nor an answer."""
    other: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"}
    for found in (os.path.realpath(sys.executable), shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        python = [found or "", "-I", "-S", "-c"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([*python, "import ssl"], check=True, capture_output=True, **other)
            break
    else:
        pytest.skip("no interpreter is another user's to run")
    with connect(None, 1, 1) as (client, _, _):
        client.submit(os.getpid).result()
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        key = client.security.tls_client_key
        assert "PRIVATE KEY" in key
        addresses = [client.scheduler.address, *client.scheduler_info(n_workers=-1)["workers"]]
        ports = [int(address.rpartition(":")[2]) for address in addresses]
        question = json.dumps([[p.pid for p in family], ports, key.strip().splitlines()[1]])
        said = subprocess.run([*python, STRANGER], input=question, capture_output=True, text=True, check=True, **other)
        assert json.loads(said.stdout) == []
        files = [p for p in Path(tempfile.gettempdir()).glob("dask*/**/*") if p.is_file()]
        assert not [p for p in files if key.strip().splitlines()[1] in p.read_text(errors="replace")]


def test_a_running_sweep_has_no_open_door(tmp_path: Path) -> None:
    """Of the command itself, all processes of a run among them: a kernel has sockets too."""
    notebook(tmp_path / "n.ipynb", "import time, pathlib\npathlib.Path(kind).touch()\ntime.sleep(60)")
    (tmp_path / "grid.yaml").write_text("{notebook: n.ipynb}")
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "tpgm.cli",
        "sweep",
        str(tmp_path / "grid.yaml"),
        "--out",
        str(out),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    sweeper = psutil.Process(process.pid)
    try:
        wait(lambda: any("ipykernel" in " ".join(p.cmdline()) for p in sweeper.children(recursive=True)))
        time.sleep(2)  # until the kernel listens
        found = listening(sweeper)
    finally:
        process.terminate()  # SIGTERM is Ctrl-C
        _, error = process.communicate(timeout=120)
    assert found
    assert set(found) == {"127.0.0.1"}
    assert process.returncode == 130, error
    assert "the same command goes on" in error
    assert "Traceback" not in error


# --- time limits


def test_a_scheduler_that_does_not_answer_is_named_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpgm.book.sweep.cluster.SECONDS_TO_ANSWER", 3)
    plan = read_grid("seeds", "smoke")
    with socket.socket() as silent, ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as web:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        threading.Thread(target=web.serve_forever, daemon=True).start()
        (tmp_path / "bad.json").write_text("[]")
        (tmp_path / "silent.json").write_text(f'{{"address": "tcp://127.0.0.1:{silent.getsockname()[1]}"}}')
        for address, kind in (
            (str(tmp_path / "absent.json"), FileNotFoundError),
            (str(tmp_path / "bad.json"), ValueError),
            (str(tmp_path / "silent.json"), OSError),
            (f"tcp://127.0.0.1:{silent.getsockname()[1]}", OSError),
            (f"127.0.0.1:{web.server_address[1]}", OSError),
            ("tcp://127.0.0.1:9", OSError),
        ):
            began = time.monotonic()
            with pytest.raises(kind, match=re.escape(address)):
                sweep(plan, tmp_path / "out", scheduler=address, progress=False)
            assert time.monotonic() - began < 15
        web.shutdown()


@pytest.mark.parametrize(("workers", "threads"), [(100_000, None), (None, 100_000), (0, None), (None, -1)])
def test_impossible_numbers_of_workers_are_refused(workers: int | None, threads: int | None) -> None:
    with pytest.raises(ValueError, match="must be at least 1 and at most four for each"):
        plan_workers(workers, threads)


def test_a_run_that_hangs_is_ended_and_the_next_one_runs(tmp_path: Path) -> None:
    code = "import time\nprint('here')\ntime.sleep(600 if seed == 0 else 0)"
    notebook(tmp_path / "n.ipynb", code)
    (tmp_path / "grid.yaml").write_text("{notebook: n.ipynb, product: {seed: [0, 1]}}")
    plan = read_grid(tmp_path / "grid.yaml")
    report = sweep(plan, tmp_path / "out", workers=1, retries=0, limit=20, progress=False)
    assert sorted(report.states.values()) == ["done", "failed"]
    ((name, error),) = report.errors.items()
    assert "time limit of 20 s" in error
    assert "print('here')" in (tmp_path / "out" / name / "notebook.ipynb").read_text(), "how far it came"
    with pytest.raises(ValueError, match="limit must be above 0"):
        sweep(plan, tmp_path / "out", limit=0)


def started(out: Path) -> int:
    return len(list(out.glob("*/attempts/*.started.json")))


def wait(condition: Any, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def test_24_runs_survive_a_killed_worker_and_a_killed_sweep(tmp_path: Path) -> None:
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(REAL)
    command = [sys.executable, "-m", "tpgm.cli", "sweep", str(grid), "--out", str(out), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    names = {job.name for job in read_grid(grid).due()}
    assert len(names) == 24

    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sweeper = psutil.Process(first.pid)
    wait(lambda: len(list(out.glob("*/row.json"))) >= 4)
    worker = next(
        p for p in sweeper.children(recursive=True) if any("serve()" in " ".join(c.cmdline()) for c in p.children())
    )
    worker.kill()
    before = len(list(out.glob("*/row.json")))
    wait(lambda: len(list(out.glob("*/row.json"))) >= before + 6)  # it went on, with another worker
    family = sweeper.children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "a killed sweep leaves no process"
    between = len(list(out.glob("*/row.json")))
    assert 10 <= between < 24

    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert f"24 done ({between} of them before), 0 failed" in second.stdout
    rows = experiment.read(out / "rows.jsonl")
    assert len(rows) == 24
    assert {row["run"] for row in rows} == names
    assert len({experiment.key(row["config"]) for row in rows}) == 24
    store = Store(out)
    finished = {name: [note["what"] for note in store.notes(name)].count("finished") for name in names}
    assert set(finished.values()) == {1}, "a run was computed twice"
    assert 24 < started(out) <= 24 + 1 + 2  # what the kills interrupted began again: one run, then two
    assert not list(out.glob("**/.*.part"))
    third = sweep(read_grid(grid), out, progress=False)
    assert not third.tries
    assert len(third.rows) == 24


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(REAL)
    command = [sys.executable, "-m", "tpgm.cli", "sweep", str(grid), "--out", str(out), "--workers", "1"]
    # whoever started the tests may ignore Ctrl-C (nohup, a background job), and children would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    signal.signal(signal.SIGINT, before)
    wait(lambda: len(list(out.glob("*/row.json"))) >= 1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "the same command goes on" in error
    assert "Traceback" not in error
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert not list(out.glob("**/.*.part"))
    for path in out.glob("*/row.json"):
        assert json.loads(path.read_text())["run"] == path.parent.name

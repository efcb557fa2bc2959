"""The commands ``tpgm run``, ``tpgm sweep`` and ``tpgm completion``."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Add the commands to the parser's `commands`; debug: the parent that all commands have."""
    run = commands.add_parser(
        "run",
        parents=[debug],
        help="run a notebook with other parameters",
        epilog="Examples: tpgm run 03_ratios -p profile full -p seed 3 --out ratios.ipynb; "
        "tpgm run 03_ratios --parameters; tpgm run",
    )
    run.add_argument("notebook", nargs="?", help="a chapter's name or a file; without it the chapters are listed")
    run.add_argument(
        "-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter"
    )
    run.add_argument("--out", help="the executed notebook (default: NOTEBOOK.out.ipynb in this folder)")
    run.add_argument("--parameters", action="store_true", help="list the notebook's parameters, run nothing")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    run.set_defaults(run=_run)

    sweep = commands.add_parser(
        "sweep",
        parents=[debug],
        help="run a grid of notebooks or experiments on all cores, GPUs or a cluster",
        epilog="Examples: tpgm sweep seeds --profile smoke --out sweeps/seeds; "
        "tpgm sweep grid.yaml --out s3://bucket/grid --scheduler tcp://10.0.0.5:8786. "
        "What is done is skipped: call it again after a crash.",
    )
    sweep.add_argument("grid", help="a YAML file, or the name of a grid that comes with the package")
    sweep.add_argument("--out", help="folder or fsspec URL of the results (needed unless --list)")
    sweep.add_argument("--profile", help="a profile of the grid: smoke, quick, full or its own")
    sweep.add_argument(
        "--retries", type=int, default=1, metavar="N", help="computations more of what fails (default 1)"
    )
    sweep.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster, or its JSON file (default: this machine)"
    )
    sweep.add_argument("--workers", type=int, help="runs at a time (default: one for each GPU, else each core)")
    sweep.add_argument("--threads", type=int, help="of each run (default: the cores, shared out)")
    sweep.add_argument("--list", action="store_true", help="print the names of the runs, run nothing")
    sweep.add_argument("--quiet", action="store_true", help="no progress")
    sweep.set_defaults(run=_sweep)

    completion = commands.add_parser(
        "completion",
        parents=[debug],
        help="print a shell's completion script",
        epilog="Example: tpgm completion bash > ~/.local/share/bash-completion/completions/tpgm",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=_completion)


def _run(args: argparse.Namespace) -> None:
    from tpgm.batch import notebooks

    if args.notebook is None:
        if args.given or args.out or args.parameters:
            raise ValueError("name the notebook: 'tpgm run' alone lists them")
        print("\n".join(notebooks.chapters()))
        return
    path = notebooks.find(args.notebook)
    if args.parameters:
        for p in notebooks.declared(path).values():
            print(f"{p.name:14s} {p.kind.__name__:6s} {p.default!r:16} {p.help}")
        return
    parameters = notebooks.parse(path, dict(args.given))
    out = args.out or f"{path.stem}.out.ipynb"
    try:
        seconds = notebooks.run_notebook(path, out, parameters, progress=not args.quiet)
    except Exception as error:
        if args.debug or type(error).__name__ != "PapermillExecutionError":
            raise
        raise RuntimeError(f"{path.name}: a cell failed{str(error).rstrip()}") from error
    print(f"{out}: {seconds:.0f} s")


def _sweep(args: argparse.Namespace) -> int:
    from tpgm.batch import read_grid, sweep

    plan = read_grid(args.grid, args.profile)
    if args.list:
        print("\n".join(job.name for job in plan.due()))
        return 0
    if not args.out:
        raise ValueError("say where the results go: --out FOLDER")
    try:
        summary = sweep(
            plan,
            args.out,
            retries=args.retries,
            scheduler=args.scheduler,
            workers=args.workers,
            threads=args.threads,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; what is done is kept, the same command goes on from there") from None
    print(summary.table())
    for name, error in summary.errors.items():
        print(f"\n{name} failed:\n{error.strip()}", file=sys.stderr)
    print(f"rows: {args.out.rstrip('/')}/rows.jsonl")
    return 1 if summary.failed else 0


def _completion(args: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab: pip install shtab") from error
    from tpgm.cli import _parser

    print(shtab.complete(_parser(), args.shell))

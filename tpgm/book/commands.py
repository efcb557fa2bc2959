"""The book's commands, which the command line finds by the entry point ``tpgm.commands``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpgm.cli import filled, number, pairs, path
from tpgm.files import require_writable

if TYPE_CHECKING:
    import pandas as pd


def add(commands: Any, debug: argparse.ArgumentParser) -> None:
    """Add the commands to the parser's `commands`; debug: the parent that all commands have."""
    experiment = commands.add_parser(
        "experiment",
        parents=[debug],
        help="run one configuration, or a whole study, and append its rows to a file",
        epilog="Examples: tpgm experiment model=icons-resnet method=tpgm seed=1 settings.epochs=2 --out rows.jsonl; "
        "tpgm experiment --protocol resnet:upstream --out results/resnet-upstream.jsonl",
    )
    experiment.add_argument(
        "config", nargs="*", metavar="KEY=VALUE", help="see tpgm.book.experiments.experiment.KEYS; settings.NAME=VALUE"
    )
    experiment.add_argument(
        "--protocol", metavar="STUDY", help="a study, such as resnet:upstream, ablations:icons-resnet or text"
    )
    experiment.add_argument("--label", action="append", default=[], help="of the study: these labels only")
    experiment.add_argument(
        "--out", type=path, required=True, help="file of JSON lines; what has a row is not run again"
    )
    experiment.add_argument("--store", type=path, help="folder where stages that several methods share are kept")
    experiment.add_argument("--quiet", action="store_true", help="no progress bars")
    experiment.set_defaults(run=_experiment)

    results = commands.add_parser(
        "results",
        parents=[debug],
        help="show result rows as a table, CSV or figure",
        epilog="Example: tpgm results results/resnet-*.jsonl --csv > rows.csv",
    )
    results.add_argument("files", nargs="+", type=path, help="files of JSON lines of any kind, or result.json of runs")
    results.add_argument("--csv", action="store_true", help="one line a row, comma separated")
    results.add_argument(
        "--plot", type=path, metavar="FILE", help="ID against OOD accuracy, a panel for each model: .svg, .pdf, .png"
    )
    results.set_defaults(run=_results)

    pretrain = commands.add_parser(
        "pretrain",
        parents=[debug],
        help="train a backbone on the upstream icons, or a zero-shot model on icons and their names",
        epilog="Example: tpgm pretrain icons-resnet runs/icons-resnet.safetensors",
    )
    pretrain.add_argument(
        "recipe",
        help="a name of tpgm.book.pretraining.RECIPES (icons-resnet, icons-vit) or of tpgm.book.contrastive.RECIPES "
        "(icons-clip-resnet, icons-clip-convnext; for a GPU icons-clip-resnet50, icons-clip-vit-small)",
    )
    pretrain.add_argument("out", type=path, help="the .safetensors file to write; its card goes beside it")
    pretrain.add_argument("--seed", type=number(0, whole=True), default=0)
    length = pretrain.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=number(1, whole=True), help="other than the recipe's, of a backbone")
    length.add_argument("--steps", type=number(1, whole=True), help="other than the recipe's, of a zero-shot model")
    pretrain.add_argument("--quiet", action="store_true", help="no progress bars")
    pretrain.set_defaults(run=_pretrain)

    recipe = commands.add_parser(
        "recipe",
        parents=[debug],
        help="run a full-scale recipe (DomainNet, ImageNet) and show it beside the published accuracies",
        epilog="Example: tpgm recipe domainnet-clip-rn50 --root data/domainnet --checkpoint RN50.pt --out rows.jsonl",
    )
    recipe.add_argument("recipe", help="a name of tpgm.book.experiments.full_scale.RECIPES")
    recipe.add_argument("--root", type=path, required=True, help="folder of the data's official layout")
    recipe.add_argument("--checkpoint", type=filled, required=True, help="file of the recipe's weights")
    recipe.add_argument("--out", type=path, required=True, help="file of JSON lines; what it has is not run again")
    recipe.add_argument("--method", action="append", default=[], help="these methods only")
    recipe.add_argument("--seed", type=number(0, whole=True), default=0)
    recipe.add_argument("--dry-run", action="store_true", help="the whole path in little: no result")
    recipe.add_argument("--quiet", action="store_true", help="no progress bars")
    recipe.set_defaults(run=_recipe)
    data = commands.add_parser(
        "data",
        parents=[debug],
        help="build the icon benchmark, show its counts, splits and licences; fetch the tweets",
        epilog="Examples: tpgm data build; tpgm data counts; tpgm data splits --style outline; tpgm data licences; "
        "tpgm data tweets",
    )
    data.add_argument("what", choices=("build", "counts", "splits", "licences", "tweets"))
    data.add_argument("--subset", default="downstream", choices=("downstream", "upstream"), help="which icons")
    data.add_argument("--style", default="solid", help="splits: the ID style (default: solid)")
    data.add_argument(
        "--source", help="the tarball of the icon package where npm cannot be used, or 'tiny' for synthetic icons"
    )
    data.add_argument("--quiet", action="store_true", help="no progress bar")
    data.set_defaults(run=_data)

    run = commands.add_parser(
        "run",
        parents=[debug],
        help="run a notebook with other parameters",
        epilog="Examples: tpgm run 03_ratios -p profile full -p seed 3 --out ratios.ipynb; "
        "tpgm run 03_ratios --parameters; tpgm run",
    )
    run.add_argument(
        "notebook", nargs="?", type=filled, help="a chapter's name or a file; without it the chapters are listed"
    )
    run.add_argument(
        "-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter"
    )
    run.add_argument("--out", type=path, help="the executed notebook (default: NOTEBOOK.out.ipynb in this folder)")
    run.add_argument("--parameters", action="store_true", help="list the notebook's parameters, run nothing")
    run.add_argument(
        "--limit",
        type=number(0, above=True),
        default=86_400,
        metavar="SECONDS",
        help="of each cell, after which it fails (default: a day)",
    )
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
    sweep.add_argument("grid", type=filled, help="a YAML file, or the name of a grid that comes with the package")
    sweep.add_argument("--out", type=filled, help="folder or fsspec URL of the results (needed unless --list)")
    sweep.add_argument("--profile", help="a profile of the grid: smoke, quick, full or its own")
    sweep.add_argument(
        "--retries",
        type=number(0, whole=True),
        default=1,
        metavar="N",
        help="computations more of what fails (default 1)",
    )
    sweep.add_argument(
        "--scheduler",
        type=filled,
        metavar="ADDRESS",
        help="of a Dask cluster, or its JSON file (default: this machine)",
    )
    sweep.add_argument(
        "--workers", type=number(1, whole=True), help="runs at a time (default: one for each GPU, else each core)"
    )
    sweep.add_argument("--threads", type=number(1, whole=True), help="of each run (default: the cores, shared out)")
    sweep.add_argument(
        "--limit",
        type=number(0, above=True),
        default=86_400,
        metavar="SECONDS",
        help="of each run, after which it fails (default: a day)",
    )
    sweep.add_argument("--list", action="store_true", help="print the names of the runs, run nothing")
    sweep.add_argument("--quiet", action="store_true", help="no progress")
    sweep.set_defaults(run=_sweep)


def _once(pairs: Iterable[Sequence[str]], where: str) -> dict[str, str]:
    """Names and values as a mapping. Raises ValueError for a name that stands there twice."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{where} has {name} twice: {found[name]!r} and {value!r}; give it once")
        found[name] = value
    return found


def _experiment(args: argparse.Namespace) -> None:
    from tpgm.book.experiments import experiment

    if args.protocol:
        from tpgm.book.experiments.catalogue import find_study

        if args.config:
            raise ValueError("give configuration keys or --protocol, not both")
        study = find_study(args.protocol)
        require_writable(args.out)
        count = study.run(
            args.out, labels=args.label, store=args.store, progress=not args.quiet and sys.stderr.isatty()
        )
        print(f"{count} runs, rows in {args.out}")
        return
    config = experiment.parse(pairs(args.config, "a configuration"))
    require_writable(args.out)
    rows = experiment.read(args.out) if args.out.exists() else []
    if not experiment.missing([config], rows):
        print(f"{args.out} has this row already")
        return
    row = experiment.run(config, progress=not args.quiet, store=args.store)
    experiment.append(args.out, row)
    ood = "" if row["ood"] is None else f", OOD mean {100 * row['ood']:.1f} %"
    print(f"{row['config']['label']}: ID {100 * row['id']:.1f} %{ood}, {row['seconds']:.0f} s; row in {args.out}")


def _results(args: argparse.Namespace) -> None:
    from tpgm.book.experiments import experiment, frames, variants
    from tpgm.book.notebook import markdown

    real = [file.resolve() for file in args.files]
    if twice := [str(file) for file, of in zip(args.files, real, strict=True) if real.count(of) > 1]:
        raise ValueError(f"{' and '.join(twice)} are one file: give it once, or its rows count twice")
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for file in args.files:
        for row in [_of_a_run(file)] if file.suffix == ".json" else experiment.read(file):
            found.setdefault(_kind(row, file), []).append(row)
    if not found:
        raise ValueError(f"no rows in {', '.join(map(str, args.files))}: give files that tpgm experiment wrote")
    rows = found.pop(("runs",), [])
    if args.plot:
        from matplotlib.backend_bases import FigureCanvasBase

        from tpgm.book.plots.comparison import id_against_ood
        from tpgm.files import write_aside

        if not rows:
            raise ValueError(f"--plot draws runs of tpgm experiment: {', '.join(map(str, args.files))} has none")
        kind, kinds = args.plot.suffix.lstrip(".") or "png", FigureCanvasBase.get_supported_filetypes()
        if kind not in kinds:
            raise ValueError(f"--plot {args.plot}: the figure's file must end in one of {', '.join(sorted(kinds))}")
        panels: dict[str, dict[str, variants.Variant]] = {}
        grouped = variants.grouped(rows)
        several = {label for _, label, number in grouped if int(number) > 1}
        for (model, label, number), variant in grouped.items():
            panels.setdefault(model, {})[f"{label} {number}" if label in several else label] = variant
        with write_aside(args.plot) as aside:
            id_against_ood(panels).savefig(aside, format=kind)
        print(f"figure: {args.plot}", file=sys.stderr)
    tables = [("runs", frames.flat(rows) if args.csv else frames.overview(rows))] if rows else []
    tables += [(", ".join(kind), _flat(of, exact=args.csv)) for kind, of in found.items()]
    for place, (title, table) in enumerate(tables):
        print("\n" * bool(place) + f"{title}\n\n" * (len(tables) > 1), end="")
        print(table.to_csv(index=False) if args.csv else f"{markdown(table)}\n", end="")


def _of_a_run(file: Path) -> dict[str, Any]:
    """A run's ``result.json``. Raises FileNotFoundError, or ValueError for another file."""
    from tpgm.files import unsealed

    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; check the path, or finish the run")
    return unsealed(file.read_bytes(), str(file))


def _kind(row: Any, file: Path) -> tuple[str, ...]:
    """Under what a row is shown: ("runs",), or its file and part. Raises ValueError, naming the file, for no row."""
    from tpgm.book.experiments import experiment

    scores = {"val", "id", "ood", "seconds", "config"}
    if isinstance(row, dict) and "versions" in row and not (scores <= row.keys() and "label" in row["config"]):
        if file.suffix == ".json":
            return ("results of runs",)
        return (file.name, str(row["part"])) if "part" in row else (file.name,)
    experiment.check_rows([row], str(file))
    return ("runs",)


_BESIDES = ("part", "versions", "format", "sha256", "confusion", "settings", "history", "data", "command", "time")


def _flat(rows: Iterable[dict[str, Any]], exact: bool) -> pd.DataFrame:
    """Rows of any kind, a column for each number and text, "seconds.mars" for those inside; without lists, and without
    entries of more than twelve. exact: numbers as they are, else in four digits."""
    import pandas as pd

    def cells(row: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
        for name, value in row.items():
            if isinstance(value, list) or name in (_BESIDES if exact else (*_BESIDES, "hardware", "commit")):
                continue
            if isinstance(value, dict):
                if len(value) <= 12:
                    yield from cells(value, f"{before}{name}.")
            else:
                yield f"{before}{name}", value if exact or not isinstance(value, float) else f"{value:.4g}"

    return pd.DataFrame([dict(cells(row)) for row in rows], dtype=object)


def _pretrain(args: argparse.Namespace) -> None:
    from tpgm.book import contrastive, pretraining
    from tpgm.check import hint

    known = {**pretraining.RECIPES, **contrastive.RECIPES}
    if args.recipe not in known:
        raise ValueError(f"unknown recipe {args.recipe!r}; {hint(args.recipe, known)}choose one of {', '.join(known)}")
    zero_shot = args.recipe in contrastive.RECIPES
    other, own = ("epochs", "steps") if zero_shot else ("steps", "epochs")
    if getattr(args, other) is not None:
        raise ValueError(f"--{other} does not go with {args.recipe}, whose length is set by --{own}")
    pretrain = contrastive.pretrain if zero_shot else pretraining.pretrain
    changes = {} if getattr(args, own) is None else {own: getattr(args, own)}
    card = pretrain(args.recipe, args.out, seed=args.seed, progress=not args.quiet, **changes)
    print(json.dumps(card, indent=1))


def _recipe(args: argparse.Namespace) -> None:
    from tpgm.book.experiments.experiment import read
    from tpgm.book.experiments.full_scale import recipe_frame, run_recipe
    from tpgm.book.notebook import markdown

    run_recipe(
        args.recipe,
        args.root,
        args.checkpoint,
        out=args.out,
        seed=args.seed,
        dry_run=args.dry_run,
        labels=args.method,
        progress=not args.quiet,
    )
    print(f"\n{markdown(recipe_frame(args.recipe, read(args.out)))}\n\nrows: {args.out}")


def _data(args: argparse.Namespace) -> None:
    from tpgm.book import icon_benchmark as data
    from tpgm.book.icon_benchmark.cache import cache_dir
    from tpgm.book.icon_tables import icon_table, licence_counts, licence_table, splits_table
    from tpgm.book.notebook import markdown

    if args.what == "tweets":
        from tpgm.book.text import fetch, topics

        if not args.source:
            fetch()
        print(markdown(topics.table(args.source or "")))
        return
    if args.source and args.source != "tiny" and not Path(args.source).is_file():
        raise FileNotFoundError(f"--source {args.source}: no such file; give the package's tarball, or 'tiny'")
    common = {"source": args.source, "progress": not args.quiet}
    if args.what == "splits":
        upstream = args.subset == "upstream"
        print(markdown(splits_table(data.icons_upstream(**common) if upstream else data.icons(args.style, **common))))
        return
    found = data.icon_collection(args.subset, **common)
    if args.what == "build":
        where = "made in memory" if args.source == "tiny" else f"in {cache_dir() / 'icons'}"
        print(f"{len(found.names):,} {args.subset} icons of {len(found.class_names)} classes, {where}")
        print(f"SHA-256 {found.checksum}")
    elif args.what == "counts":
        print(markdown(icon_table(found)))
    else:
        print(f"{markdown(licence_table(found.set_info))}\n\n{markdown(licence_counts(found.set_info))}")


def _run(args: argparse.Namespace) -> None:
    from tpgm.book.sweep import notebooks
    from tpgm.book.sweep.cluster import end_is_interruption

    if args.notebook is None:
        if args.given or args.out or args.parameters:
            raise ValueError("name the notebook: 'tpgm run' alone lists them")
        print("\n".join(notebooks.chapters()))
        return
    path = notebooks.find(args.notebook)
    if args.parameters:
        for p in notebooks.declared(path).values():
            print(f"{p.name:14s} {p.kind:6s} {p.text:16} {p.help}")
        return
    parameters = notebooks.parse(path, _once(args.given, "-p"))
    out = args.out or f"{path.stem}.out.ipynb"
    try:
        with end_is_interruption():
            seconds = notebooks.run_notebook(
                path,
                out,
                parameters,
                beside=notebooks.beside(path),
                progress=not args.quiet,
                cell_limit=args.limit,
            )
    except Exception as error:
        if args.debug or type(error).__name__ not in ("PapermillExecutionError", "DeadKernelError", "CellTimeoutError"):
            raise
        failed = Path(out).with_suffix(notebooks.FAILED)
        raise RuntimeError(f"{path.name}: a cell failed, see {failed}: {str(error).strip()}") from error
    print(f"{out}: {seconds:.0f} s")


def _sweep(args: argparse.Namespace) -> int:
    from tpgm.book.sweep import read_grid, sweep

    plan = read_grid(args.grid, args.profile)
    if args.list:
        print("\n".join(job.name for job in plan.due()))
        return 0
    if not args.out:
        raise ValueError("say where the results go: --out FOLDER")
    try:
        report = sweep(
            plan,
            args.out,
            retries=args.retries,
            scheduler=args.scheduler,
            workers=args.workers,
            threads=args.threads,
            limit=args.limit,
            progress=not args.quiet,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; what is done is kept, the same command goes on from there") from None
    print(report.table())
    for name, error in report.errors.items():
        print(f"\n{name} failed:\n{error.strip()}", file=sys.stderr)
    print(f"rows: {args.out.rstrip('/')}/rows.jsonl")
    return 1 if report.failed else 0

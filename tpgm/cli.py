"""The ``tpgm`` command. Thin: it reads arguments, calls the package and prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tpgm.batch import commands as batch_commands
from tpgm.data import commands as data_commands

if TYPE_CHECKING:
    from tpgm.data import DataSplits


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors are one line on stderr unless ``--debug`` is given."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt as stop:
        print(f"\ntpgm: {stop or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ArithmeticError, ImportError, RuntimeError) as error:
        if args.debug:
            raise
        bare = isinstance(error, ModuleNotFoundError) and "pip install" not in str(error)
        advice = "; commands that train need more than the core: pip install 'tpgm[train]'" if bare else ""
        print(f"tpgm: {error}{advice}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tpgm",
        description="Robust fine-tuning: TPGM, its relatives and the baselines.",
        epilog="Example: tpgm finetune icons-resnet icons --method tpgm-end --set epochs=3 --out runs/first",
    )
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    finetune = commands.add_parser(
        "finetune",
        parents=[debug],
        help="fine-tune a pre-trained model and test it in and out of distribution",
        epilog="Examples: tpgm finetune efficientnet-lite0 icons --size 64 --method lp-ft --out runs/lp-ft; "
        "tpgm finetune timm/resnet50 photos/ --ood sketches=drawings/ --method tpgm --set norm=l2 --out runs/mine",
    )
    finetune.add_argument("model", help="a name or file that tpgm.models.load knows")
    finetune.add_argument("data", help="'icons', 'icons:STYLE' (the ID style), or a folder of class folders")
    finetune.add_argument("--method", default="tpgm", help="see 'tpgm methods' (default: tpgm)")
    finetune.add_argument("--out", type=Path, required=True, help="folder for checkpoint and results")
    finetune.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    finetune.add_argument("--ood", action="append", default=[], metavar="NAME=FOLDER", help="an OOD folder to test on")
    finetune.add_argument("--size", type=int, help="image height and width in pixels (default: the model's own)")
    finetune.add_argument("--train-per-class", type=int, help="icons: at most so many training images of each class")
    finetune.add_argument("--quiet", action="store_true", help="no progress bars")
    finetune.set_defaults(run=_finetune)

    pretrain = commands.add_parser(
        "pretrain",
        parents=[debug],
        help="train a backbone on the upstream icons",
        epilog="Example: tpgm pretrain icons-resnet runs/icons-resnet.safetensors",
    )
    pretrain.add_argument("recipe", help="a name of tpgm.models.pretraining.RECIPES: icons-resnet or icons-vit")
    pretrain.add_argument("out", type=Path, help="the .safetensors file to write; its card goes beside it")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--epochs", type=int, help="other than the recipe's")
    pretrain.add_argument("--quiet", action="store_true", help="no progress bars")
    pretrain.set_defaults(run=_pretrain)

    experiment = commands.add_parser(
        "experiment",
        parents=[debug],
        help="run one configuration, or a part of the protocol, and append its rows to a file",
        epilog="Examples: tpgm experiment model=icons-resnet method=tpgm seed=1 settings.epochs=2 --out rows.jsonl; "
        "tpgm experiment --protocol resnet:upstream --out results/resnet-upstream.jsonl",
    )
    experiment.add_argument(
        "config", nargs="*", metavar="KEY=VALUE", help="see tpgm.experiment.KEYS; settings.NAME=VALUE"
    )
    experiment.add_argument(
        "--protocol", metavar="PART:REGIME", help="such as resnet:upstream, ablations:icons-resnet or text"
    )
    experiment.add_argument("--label", action="append", default=[], help="of the protocol: these methods only")
    experiment.add_argument(
        "--out", type=Path, required=True, help="file of JSON lines; what has a row is not run again"
    )
    experiment.add_argument("--store", type=Path, help="folder where stages that several methods share are kept")
    experiment.add_argument("--quiet", action="store_true", help="no progress bars")
    experiment.set_defaults(run=_experiment)

    results = commands.add_parser(
        "results",
        parents=[debug],
        help="show result rows as a table, CSV or figure",
        epilog="Example: tpgm results results/resnet-*.jsonl --csv > rows.csv",
    )
    results.add_argument("files", nargs="+", type=Path, help="files of JSON lines")
    results.add_argument("--csv", action="store_true", help="one line a row, comma separated")
    results.add_argument("--plot", type=Path, metavar="FILE", help="ID against OOD accuracy, a panel for each model")
    results.set_defaults(run=_results)

    methods = commands.add_parser("methods", parents=[debug], help="list the methods, or one method's settings")
    methods.add_argument("method", nargs="?")
    methods.set_defaults(run=_methods)

    recipe = commands.add_parser(
        "recipe",
        parents=[debug],
        help="run a full-scale recipe (DomainNet, ImageNet) and show it beside the published accuracies",
        epilog="Example: tpgm recipe domainnet-clip-rn50 --root data/domainnet --checkpoint RN50.pt --out rows.jsonl",
    )
    recipe.add_argument("recipe", help="a name of tpgm.recipes.RECIPES")
    recipe.add_argument("--root", type=Path, required=True, help="folder of the data's official layout")
    recipe.add_argument("--checkpoint", required=True, help="file of the recipe's weights")
    recipe.add_argument("--out", type=Path, required=True, help="file of JSON lines; what it has is not run again")
    recipe.add_argument("--method", action="append", default=[], help="these methods only")
    recipe.add_argument("--seed", type=int, default=0)
    recipe.add_argument("--dry-run", action="store_true", help="the whole path in little: no result")
    recipe.add_argument("--quiet", action="store_true", help="no progress bars")
    recipe.set_defaults(run=_recipe)
    data_commands.add(commands, debug)
    batch_commands.add(commands, debug)
    return parser


def _finetune(args: argparse.Namespace) -> None:
    from tpgm.methods import parse, resolve
    from tpgm.training import finetune

    given = dict(_pair(text, "--set") for text in args.set)
    settings = {name: parse(args.method, name, value) for name, value in given.items()}
    resolve(args.method, settings)  # before any data are built
    if args.size is not None and args.size < 1:
        raise ValueError(f"--size must be at least 1, got {args.size}")
    result = finetune(
        args.model, _data(args), args.method, out=args.out, size=args.size, progress=not args.quiet, **settings
    )
    print(f"\n{result.method}: {result.seconds:.0f} s of training\n\n{result.table()}\n")
    print(f"model, result and figure: {args.out}")


def _data(args: argparse.Namespace) -> DataSplits:
    from tpgm import data

    name, _, style = args.data.partition(":")
    if name == "icons":
        if args.ood:
            raise ValueError("--ood goes with a folder; the icons bring their own OOD tests")
        return data.icons(style or "solid", train_per_class=args.train_per_class)
    if args.train_per_class is not None:
        raise ValueError("--train-per-class goes with the icons only")
    folders = {name: Path(folder) for name, folder in (_pair(text, "--ood") for text in args.ood)}
    return data.image_folder(Path(args.data), ood=folders, transform=data.resize_and_crop(args.size or 224))


def _pretrain(args: argparse.Namespace) -> None:
    from tpgm.models import pretrain

    changes = {} if args.epochs is None else {"epochs": args.epochs}
    card = pretrain(args.recipe, args.out, seed=args.seed, progress=not args.quiet, **changes)
    print(json.dumps(card, indent=1))


def _experiment(args: argparse.Namespace) -> None:
    from tpgm import experiment, protocol

    if args.protocol:
        if args.config:
            raise ValueError("give configuration keys or --protocol, not both")
        if args.protocol == "text":
            from tpgm.text.protocol import run_all

            count = run_all(args.out, labels=args.label, store=args.store)
            print(f"{count} runs, rows in {args.out}")
            return
        part, _, regime = args.protocol.partition(":")
        if part in ("ablations", "paths", "controlled"):
            args.label = []
        elif regime not in protocol.REGIMES.get(part, {}):
            known = ", ".join(f"{p}:{r}" for p, regimes in protocol.REGIMES.items() for r in regimes)
            known += ", text, and ablations, paths or controlled with a model's name"
            raise ValueError(f"unknown part of the protocol {args.protocol!r}; choose one of {known}")
        elif unknown := sorted(set(args.label) - set(protocol.LABELS[part])):
            raise ValueError(f"unknown label {unknown[0]!r}; choose among {', '.join(protocol.LABELS[part])}")
        count = protocol.run_all(part, regime, args.out, labels=args.label, store=args.store)
        print(f"{count} runs, rows in {args.out}")
        return
    config = experiment.parse(dict(_pair(text, "a configuration") for text in args.config))
    rows = experiment.read(args.out) if args.out.exists() else []
    if not experiment.missing([config], rows):
        print(f"{args.out} has this row already")
        return
    row = experiment.run(config, progress=not args.quiet, store=args.store)
    experiment.append(args.out, row)
    ood = "" if row["ood"] is None else f", OOD mean {100 * row['ood']:.1f} %"
    print(f"{row['config']['label']}: ID {100 * row['id']:.1f} %{ood}, {row['seconds']:.0f} s; row in {args.out}")


def _results(args: argparse.Namespace) -> None:
    from tpgm import experiment, results

    rows = experiment.read(*args.files)
    if not rows:
        raise ValueError(f"no rows in {', '.join(map(str, args.files))}")
    if args.plot:
        from tpgm.files import write_aside
        from tpgm.plots.experiments import id_against_ood

        panels: dict[str, dict[str, results.Summary]] = {}
        for (model, label, number), summary in results.grouped(rows).items():
            panels.setdefault(model, {})[f"{label} {number}"] = summary
        with write_aside(args.plot) as aside:
            id_against_ood(panels).savefig(aside, format=args.plot.suffix.lstrip(".") or "png")
        print(f"figure: {args.plot}", file=sys.stderr)
    print(results.as_csv(rows) if args.csv else results.overview(rows), end="" if args.csv else "\n")


def _methods(args: argparse.Namespace) -> None:
    from tpgm.methods import METHODS, options

    if args.method is None:
        for name, method in METHODS.items():
            print(f"{name:14s} {method.about}")
        return
    for name, (default, about) in options(args.method).items():
        print(f"{name:16s} {default!s:8s} {about}")


def _recipe(args: argparse.Namespace) -> None:
    from tpgm.experiment import read
    from tpgm.recipes import run_recipe, table

    run_recipe(
        args.recipe,
        args.root,
        args.checkpoint,
        out=args.out,
        seed=args.seed,
        dry_run=args.dry_run,
        methods=args.method,
        progress=not args.quiet,
    )
    print(f"\n{table(args.recipe, read(args.out))}\n\nrows: {args.out}")


def _pair(text: str, option: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise ValueError(f"{option} takes NAME=VALUE, got {text!r}")
    return name, value


if __name__ == "__main__":
    sys.exit(main())

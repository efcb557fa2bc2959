"""The ``tpgm`` command. Thin: it reads arguments, calls the package and prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

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
    pretrain.add_argument("recipe", help="a name of tpgm.training.pretraining.RECIPES: icons-resnet or icons-vit")
    pretrain.add_argument("out", type=Path, help="the .safetensors file to write; its card goes beside it")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--epochs", type=int, help="other than the recipe's")
    pretrain.add_argument("--quiet", action="store_true", help="no progress bars")
    pretrain.set_defaults(run=_pretrain)

    methods = commands.add_parser("methods", parents=[debug], help="list the methods, or one method's settings")
    methods.add_argument("method", nargs="?")
    methods.set_defaults(run=_methods)

    completion = commands.add_parser(
        "completion",
        parents=[debug],
        help="print a shell's completion script",
        epilog="Example: tpgm completion bash > ~/.local/share/bash-completion/completions/tpgm",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=_completion)
    for found in sorted(entry_points(group="tpgm.commands"), key=lambda point: point.name):
        try:
            found.load()(commands, debug)
        except Exception as error:  # another package's fault must not take the other commands along
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"tpgm: left out the commands {found.name!r} ({found.value}): {reason}", file=sys.stderr)
    return parser


def _finetune(args: argparse.Namespace) -> None:
    from tpgm.methods import parse, resolve
    from tpgm.training.loop import finetune

    given = dict(pair(text, "--set") for text in args.set)
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
    folders = {name: Path(folder) for name, folder in (pair(text, "--ood") for text in args.ood)}
    return data.image_folder(Path(args.data), ood=folders, transform=data.resize_and_crop(args.size or 224))


def _pretrain(args: argparse.Namespace) -> None:
    from tpgm.models import pretrain

    changes = {} if args.epochs is None else {"epochs": args.epochs}
    card = pretrain(args.recipe, args.out, seed=args.seed, progress=not args.quiet, **changes)
    print(json.dumps(card, indent=1))


def _methods(args: argparse.Namespace) -> None:
    from tpgm.methods import METHODS, options

    if args.method is None:
        for name, method in METHODS.items():
            print(f"{name:14s} {method.about}")
        return
    for name, (default, about) in options(args.method).items():
        print(f"{name:16s} {default!s:8s} {about}")


def _completion(args: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab: pip install shtab") from error
    print(shtab.complete(_parser(), args.shell))


def pair(text: str, option: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise ValueError(f"{option} takes NAME=VALUE, got {text!r}")
    return name, value


if __name__ == "__main__":
    sys.exit(main())

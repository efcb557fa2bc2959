"""The ``tpgm`` command. Thin: it reads arguments, calls the package and prints."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tpgm import __version__

if TYPE_CHECKING:
    from tpgm.data import DataSplits


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors are one line on stderr unless ``--debug`` is given."""
    parser = _parser()
    args = parser.parse_args(arguments)
    args.called = sys.argv[1:] if arguments is None else list(arguments)
    formatted, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"tpgm: {message}\n"
    try:
        return args.run(args) or 0
    except KeyboardInterrupt as stop:
        print(f"\ntpgm: {stop or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"tpgm: {_one_line(error)}", file=sys.stderr)
        return 1
    finally:
        warnings.formatwarning = formatted


# what this package raises, with words of its own
_MEANT = (ValueError, TypeError, OSError, ArithmeticError, ImportError, RuntimeError, argparse.ArgumentTypeError)


def _one_line(error: Exception) -> str:
    """What went wrong, and what to do about an error that no part of this package meant to raise."""
    if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
        return f"{error}; commands that train need more than the core: pip install 'tpgm[train]'"
    if isinstance(error, MemoryError):
        return f"out of memory ({error}): lower batch_size or the image size"
    if isinstance(error, _MEANT) and str(error):
        return str(error).removeprefix(f"[Errno {getattr(error, 'errno', None)}] ")
    return f"unexpected {type(error).__name__}: {error}; the same command with --debug shows where, please report it"


class _Once(argparse._StoreAction):
    """An option's value; an option that is given twice is refused, where argparse would drop the first."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = vars(namespace).setdefault("given_once", set())
        if option_string and self.dest in given:
            parser.error(f"{option_string} is given twice: give it once")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _Parser(argparse.ArgumentParser):
    """Each option once; a command that has --config takes the values of that file as its defaults."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def parse_known_args(self, *args: Any, **options: Any) -> Any:  # each command answers for its own arguments
        if args and args[0] is not None and "--config" in self._option_string_actions:
            self._configure(list(args[0]))
        found, left = super().parse_known_args(*args, **options)
        near = [
            m
            for w in left
            if w[0] == "-"
            for m in difflib.get_close_matches(w.split("=")[0], self._option_string_actions, n=1)
        ]
        if left:
            self.error(f"unrecognized {' '.join(left)}" + f" (did you mean {', '.join(near)}?)" * bool(near))
        return found, left

    def _configure(self, given: list[str]) -> None:
        """Positional arguments and required options that a file or other options stand for may be left out."""
        peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in ("config", "checkpoint", "architecture"):
            peek.add_argument(f"--{name}", type=Path)
        seen = peek.parse_known_args(given)[0]
        known = {action.dest: action for action in self._actions if action.dest not in ("help", "config", "debug")}
        if seen.checkpoint and seen.architecture:
            known["model"].nargs, known["model"].required = "?", False
        if seen.config is None:
            return
        try:
            for name, value in _read_config(seen.config).items():
                if (action := known.get(name.replace("-", "_"))) is None:
                    near = difflib.get_close_matches(name, known, n=1)
                    hint = f"; did you mean {near[0]}?" if near else f"; it may have {', '.join(known)}"
                    raise ValueError(f"{seen.config} has {name!r}, which this command has not{hint}")
                action.default, action.required = _as_given(self, action, name, value), False
                if not action.option_strings:
                    action.nargs = "?"
        except (OSError, ValueError, argparse.ArgumentTypeError) as error:
            self.error(f"--config: {error}")

    def error(self, message: str) -> NoReturn:
        super().error(f"{message}; see {self.prog} --help")


def _read_config(file: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file. Raises OSError, or ValueError if it holds something else."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        import json

        found = json.loads(text)
    else:
        import yaml

        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not (isinstance(found, dict) and all(isinstance(name, str) for name in found)):
        raise ValueError(f"{file} must hold names and values, such as 'epochs: 3'")
    return found


def _as_given(parser: argparse.ArgumentParser, action: argparse.Action, name: str, value: Any) -> Any:
    """A value of a configuration as the command line would have read it. Raises ValueError."""

    def one(single: Any) -> Any:
        if isinstance(single, dict | list) or single is None:
            raise ValueError(f"{name} must be a single value, got {single!r}")
        try:
            read = action.type(str(single)) if callable(action.type) else str(single)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{name}: {error}") from None
        if action.choices is not None and read not in action.choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, action.choices))}, got {read!r}")
        return read

    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
        return value
    if isinstance(value, dict) and isinstance(action.default, list):
        return [f"{key}={one(single)}" for key, single in value.items()]
    if isinstance(action.default, list) or action.nargs == "+":
        return [one(single) for single in (value if isinstance(value, list) else [value])]
    return one(value)


def number(low: float = -math.inf, *, whole: bool = False, above: bool = False) -> Callable[[str], Any]:
    """An argument's type: a number in a range, see `tpgm.check.number`."""

    def read(text: str) -> Any:
        from tpgm import check

        value: Any = text
        with contextlib.suppress(ValueError):
            value = int(text) if whole else float(text)
        try:
            return check.number("", value, low, whole=whole, above=above)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).strip()) from None

    return read


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tpgm",
        description="Robust fine-tuning: TPGM, its relatives and the baselines.",
        epilog="Example: tpgm finetune icons-resnet icons --method tpgm-end --set epochs=3 --out runs/first",
    )
    parser.add_argument("--version", action="version", version=f"tpgm {__version__}")
    debug = _Parser(add_help=False)
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    training = _Parser(add_help=False)
    training.add_argument(
        "--config",
        type=path,
        metavar="FILE",
        help="YAML or JSON with this command's arguments by name; options given besides come first",
    )
    training.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    training.add_argument("--ood", action="append", default=[], metavar="NAME=FOLDER", help="an OOD folder to test on")
    training.add_argument("--size", type=number(1, whole=True), help="image side in pixels (default: the model's own)")
    for name, (default, about) in _COMMON.items():
        of = number(0, whole=isinstance(default, int))
        training.add_argument(f"--{name.replace('_', '-')}", type=of, help=f"{about} (default: {default})")
    training.add_argument(
        "--train-per-class", type=number(1, whole=True), help="icons: at most so many training images of each class"
    )
    training.add_argument(
        "--ood-extra", choices=("refuse", "ignore"), default="refuse", help="classes that only an OOD folder has"
    )
    training.add_argument("--skip-broken", action="store_true", help="read all images first, leave out the broken ones")
    training.add_argument("--check", action="store_true", help="only read all images, and name those that are broken")
    training.add_argument("--quiet", action="store_true", help="no progress")

    finetune = commands.add_parser(
        "finetune",
        parents=[debug, training],
        help="fine-tune a pre-trained model and test it in and out of distribution",
        epilog="Examples: tpgm finetune efficientnet-lite0 icons --size 64 --method lp-ft --out runs/lp-ft; "
        "tpgm finetune timm/resnet50 photos/ --ood sketches=drawings/ --method tpgm --set norm=l2 --out runs/mine",
    )
    finetune.add_argument("model", type=filled, help="a name or file that tpgm.models.load knows")
    finetune.add_argument("data", type=filled, help="'icons', 'icons:STYLE' (the ID style), or a folder of classes")
    finetune.add_argument("--method", default="one-ratio", help="see 'tpgm methods' (default: one-ratio)")
    finetune.add_argument("--out", type=path, required=True, help="folder for checkpoint and results")
    finetune.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    finetune.add_argument(
        "--checkpoint", type=path, metavar="FILE", help="weights of other projects, for the architecture MODEL"
    )
    finetune.add_argument(
        "--architecture", metavar="NAME", help="such as timm/resnet50, where MODEL or --checkpoint is a file without it"
    )
    finetune.add_argument(
        "--dry-run", action="store_true", help="check data and model, take three steps, tell time and memory"
    )
    finetune.add_argument(
        "--log", action="append", default=[], choices=("csv", "tensorboard", "wandb"), help="where epochs go as well"
    )
    finetune.add_argument(
        "--checkpoint-seconds", type=number(0), default=60.0, metavar="S", help="between checkpoints (default: 60)"
    )
    finetune.set_defaults(run=_finetune)

    compare = commands.add_parser(
        "compare",
        parents=[debug, training],
        help="fine-tune by several methods under equal budgets, show them in one table and keep the best model",
        epilog="Example: tpgm compare photos/ --ood sketches=drawings/ --methods vanilla tpgm-end --epochs 5 "
        "--out runs/compared. What is finished is skipped: call it again after an interruption.",
    )
    compare.add_argument("data", type=filled, help="'icons', 'icons:STYLE' (the ID style), or a folder of classes")
    compare.add_argument("--models", nargs="+", type=filled, default=["efficientnet-lite0"], help="names or files")
    compare.add_argument(
        "--methods", nargs="+", default=["vanilla", "lp-ft", "one-ratio", "tpgm-end"], help="see 'tpgm methods'"
    )
    compare.add_argument("--out", type=path, required=True, help="folder of runs, table, figure and the best model")
    compare.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of all methods that have it, or as METHOD.NAME=VALUE of one",
    )
    compare.add_argument("--keep", choices=("best", "all"), default="best", help="whose weights (default: best)")
    compare.set_defaults(run=_compare)

    using = _Parser(add_help=False)
    using.add_argument("model", type=filled, help="a run's folder, a model's file, or a name tpgm.models.load knows")
    using.add_argument("--batch-size", type=number(1, whole=True), default=64)
    using.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    using.add_argument("--skip-broken", action="store_true", help="leave out, and count, images that cannot be read")
    using.add_argument("--quiet", action="store_true", help="no progress bars")
    predict = commands.add_parser(
        "predict",
        parents=[debug, using],
        help="the most probable classes of images, as CSV or JSON",
        epilog="Example: tpgm predict runs/mine photos/new --top 3 --out answers.csv",
    )
    predict.add_argument("images", nargs="+", type=path, help="image files, or folders of them")
    predict.add_argument("--top", type=number(1, whole=True), default=1, help="classes an image (default: 1)")
    predict.add_argument("--out", type=path, help="a .csv or .json file (default: CSV on standard output)")
    predict.set_defaults(run=_predict)

    evaluate = commands.add_parser(
        "evaluate",
        parents=[debug, using],
        help="test a model on folders of classes without training",
        epilog="Example: tpgm evaluate runs/mine photos/test sketches=drawings/ --out runs/mine/evaluation",
    )
    evaluate.add_argument("folders", nargs="+", type=filled, metavar="FOLDER", help="FOLDER or NAME=FOLDER")
    evaluate.add_argument(
        "--ood-extra", choices=("refuse", "ignore"), default="refuse", help="classes that the model does not have"
    )
    evaluate.add_argument(
        "--out", type=path, help="folder for counts, scores of classes, confusion and the worst answers as figures"
    )
    evaluate.set_defaults(run=_evaluate)

    push = commands.add_parser(
        "push",
        parents=[debug],
        help="put a finished run's model on the Hugging Face Hub",
        epilog="Example: tpgm push runs/mine user/model --private. Log in first: hf auth login.",
    )
    push.add_argument("folder", type=path, help="the folder of a finished run")
    push.add_argument("repo", type=filled, help="USER/MODEL, made if it does not exist")
    push.add_argument("--private", action="store_true", help="a new repository is private")
    push.set_defaults(run=_push)

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


# settings that have an option of their own: default and help
_COMMON: dict[str, tuple[float, str]] = {
    "epochs": (5, "passes over the training data"),
    "lr": (3e-4, "highest learning rate"),
    "seed": (0, "of the new head, the order of the data, augmentation and dropout"),
    "batch_size": (64, "training images a step"),
    "patience": (0, "early stopping: after so many epochs without a better ID validation accuracy; 0: never"),
}


def _settings(args: argparse.Namespace) -> dict[str, str]:
    """The texts of the settings, from their own options and from --set."""
    own = [f"{name}={value}" for name in _COMMON if (value := getattr(args, name)) is not None]
    return pairs([*own, *args.set], "--set")


def _compare(args: argparse.Namespace) -> int:
    import shlex

    from tpgm.comparing import compare
    from tpgm.methods import options, parse

    if args.check:
        return _check(args)
    valid = {method: options(method) for method in args.methods}
    own: dict[str, dict[str, Any]] = {}
    common: dict[str, Any] = {}
    for name, value in _settings(args).items():
        method, dot, setting = name.rpartition(".")
        if dot:
            own.setdefault(method, {})[setting] = parse(method, setting, value)
        else:
            having = next((m for m in valid if name in valid[m]), args.methods[0])
            common[name] = parse(having, name, value)
    found = compare(
        _data(args),
        args.models,
        args.methods,
        out=args.out,
        size=args.size,
        device=args.device,
        keep=args.keep,
        progress=not args.quiet,
        command=shlex.join(["tpgm", *args.called]),
        own=own,
        **common,
    )
    print(f"\n{found.table()}\n")
    if len({entry.passes for entry in found.entries}) > 1:
        print("some train the head first (epochs of the head + epochs): --set head_epochs=2 lets all do so\n")
    low, high = found.best.accuracies["val"].interval
    print(
        f"best by ID validation: {found.best.model}, {found.best.method} "
        f"({100 * low:.1f} to {100 * high:.1f} %, 95 % interval)\nmodel: {args.out / 'best'}\n"
        f"table and figure: {args.out / 'comparison.csv'}, .md, .svg, .png"
    )
    return 0


def _finetune(args: argparse.Namespace) -> int:
    import shlex

    from tpgm.methods import make, parse
    from tpgm.training.loop import finetune

    settings = {name: parse(args.method, name, value) for name, value in _settings(args).items()}
    make(args.method, settings)  # before any data are built
    if args.check:
        return _check(args)
    model, architecture = args.model, args.architecture
    if args.checkpoint is not None:
        if model and architecture:
            raise ValueError("--checkpoint goes with MODEL as its architecture, or with --architecture: give one")
        model, architecture = args.checkpoint, model or architecture
    common = {"size": args.size, "device": args.device, "architecture": architecture}
    if args.dry_run:
        from tpgm.training.rehearsal import rehearse

        print(rehearse(model, _data(args), args.method, settings=settings, **common))
        there = "; holds a finished run already" if (args.out / "result.json").exists() else ""
        print(f"nothing was written; without --dry-run it would be to {args.out}{there}")
        return 0
    result = finetune(
        model,
        _data(args),
        args.method,
        out=args.out,
        progress=not args.quiet,
        checkpoint_seconds=args.checkpoint_seconds,
        log=args.log,
        command=shlex.join(["tpgm", *args.called]),
        **common,
        **settings,
    )
    print(f"\n{result.method}: {result.seconds:.0f} s of training\n\n{result.table()}\n")
    print(f"model, result and figures: {args.out}; to look at: {args.out / 'report.html'}")
    return 0


def _data(args: argparse.Namespace) -> DataSplits:
    from tpgm import data

    name, _, style = args.data.partition(":")
    if name == "icons":
        if args.ood:
            raise ValueError("--ood goes with a folder; the icons bring their own OOD tests")
        found: DataSplits = data.icons(style or "solid", train_per_class=args.train_per_class)
        return found
    if args.train_per_class is not None:
        raise ValueError("--train-per-class goes with the icons only")
    folders = {name: path(folder) for name, folder in pairs(args.ood, "--ood").items()}
    return data.image_folder(
        Path(args.data), ood=folders, ood_extra=args.ood_extra, skip_broken=args.skip_broken or args.check
    )


def _check(args: argparse.Namespace) -> int:
    """Read every image; 1 if one is broken."""
    from tpgm.data.folders import images_in
    from tpgm.data.images import broken_images

    if args.data.partition(":")[0] == "icons":
        raise ValueError("--check goes with a folder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # _data tells what is left out
        images = images_in([Path(args.data), *map(Path, pairs(args.ood, "--ood").values())])
    broken = broken_images(images)
    for reason in broken.values():
        print(reason)
    print(f"{len(images)} images, {len(broken)} broken" + "; --skip-broken leaves them out" * bool(broken))
    found = _data(args)
    parts = {"train": found.train, "val": found.val, "id_test": found.id_test, **found.ood_tests}
    print(
        f"{len(found.class_names)} classes; images: {', '.join(f'{name} {len(part)}' for name, part in parts.items())}"
    )
    return int(bool(broken))


def _predict(args: argparse.Namespace) -> None:
    import csv
    import io
    import json

    from tpgm.files import require_writable, write_aside
    from tpgm.inference import predict

    if args.out is not None:
        if args.out.suffix not in (".csv", ".json"):
            raise ValueError(f"--out must end in .csv or .json, got {args.out}")
        require_writable(args.out)
    found = predict(args.model, args.images, top=args.top, **_using(args))
    if args.out is not None and args.out.suffix == ".json":
        rows = [{"file": str(f), "classes": [{"class": c, "probability": p} for c, p in best]} for f, best in found]
        text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    else:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        ranks = range(1, 1 + max(len(best) for _, best in found))
        writer.writerow(["file", *(column for n in ranks for column in (f"class_{n}", f"probability_{n}"))])
        writer.writerows([file, *(cell for c, p in best for cell in (c, f"{p:.6f}"))] for file, best in found)
        text = table.getvalue()
    if args.out is None:
        print(text, end="")
        return
    with write_aside(args.out) as aside:
        aside.write_text(text, encoding="utf-8")
    print(f"{len(found)} images: {args.out}")


def _evaluate(args: argparse.Namespace) -> None:
    from tpgm.files import require_writable
    from tpgm.inference import evaluate, opened, summary, write

    named = [text if "=" in text else f"{Path(text).name or text}={text}" for text in args.folders]
    folders = pairs(named, "FOLDER")
    for folder in folders.values():
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; it must hold a folder of images for each class")
    if args.out is not None:
        require_writable(args.out / "evaluation.json")
    model, _ = opened(args.model)
    found = {
        name: evaluate(model, path(folder), ood_extra=args.ood_extra, **_using(args))
        for name, folder in folders.items()
    }
    print(summary(found))
    if args.out is not None:
        write(args.out, found)
        print(f"\ncounts, scores of classes and figures: {args.out}")


def _push(args: argparse.Namespace) -> None:
    from tpgm.models import push_to_hub

    print(push_to_hub(args.folder, args.repo, private=args.private))


def _using(args: argparse.Namespace) -> dict[str, Any]:
    progress = not args.quiet
    return {
        "batch_size": args.batch_size, "device": args.device, "skip_broken": args.skip_broken, "progress": progress
    }  # fmt: skip


def _methods(args: argparse.Namespace) -> None:
    from tpgm.methods import METHODS, options, valid_values

    if args.method is None:
        for name, method in METHODS.items():
            print(f"{name:14s} {method.about}")
        return
    valid = valid_values(args.method)
    for name, (default, about) in options(args.method).items():
        print(f"{name} = {default}\n    {about}\n    {valid[name]}")


def _completion(args: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab: pip install shtab") from error
    print(shtab.complete(_parser(), args.shell))


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE texts as a mapping. Raises ValueError for one of another form, or a name that comes twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        folder = option.endswith("ood")
        if not (name and separator and (value.strip() or not folder)):
            raise ValueError(f"{option} takes NAME={'FOLDER, such as s=photos/s' if folder else 'VALUE'}, got {text!r}")
        if name in found:
            raise ValueError(f"{option} gives {name} twice ({found[name]!r} and {value!r}): give it once")
        found[name] = value
    return found


def filled(text: str, what: str = "name") -> str:
    """The text of an argument. Raises argparse.ArgumentTypeError for an empty one."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"the {what} is empty: name a file or folder, '.' for this, or leave it out")
    return text


def path(text: str) -> Path:
    """A path from an argument. Raises argparse.ArgumentTypeError for an empty one."""
    return Path(filled(text, "path"))


if __name__ == "__main__":
    sys.exit(main())

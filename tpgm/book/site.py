"""What the book's pages take from code and rows when they are built, so that they cannot drift.

A page asks for it in place: ``{built}`gain zero-shot:resnet; one ratio; vanilla; ood` `` in a line, or a block
```` ```{built} commands ```` closed by three backticks. `fill` puts the text there; an unknown name or label is an
error and stops the build.
"""

from __future__ import annotations

import argparse
import datetime
import html
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from tpgm.book.experiments.catalogue import STUDIES, find_study
from tpgm.book.experiments.display import DISPLAY
from tpgm.book.experiments.experiment import committed, read
from tpgm.book.experiments.regimes import committed as regimes_committed
from tpgm.book.experiments.regimes import regrets
from tpgm.book.experiments.variants import Mean, Variant, paired
from tpgm.check import hint
from tpgm.names import in_markdown

_ROOT = Path(__file__).resolve().parents[2]
_MARK = re.compile(r"^```\{built\} ([^\n`]+)\n```$|\{built\}`([^`]+)`", re.MULTILINE)


def fill(text: str) -> str:
    """A page's text with every mark replaced. Raises ValueError for a mark that asks for what does not exist."""

    def built(found: re.Match[str]) -> str:
        name, _, rest = (found[1] or found[2]).strip().partition(" ")
        if name not in PARTS:
            raise ValueError(f"{{built}} {name!r}: {hint(name, PARTS)}choose one of {', '.join(PARTS)}")
        return PARTS[name](*(part.strip() for part in rest.split(";") if part.strip()))

    return _MARK.sub(built, text)


# --- from rows


@lru_cache
def _chosen(study: str) -> dict[str, Variant]:
    found = find_study(study)
    return found.chosen(read(committed(found.file)))


def _variant(study: str, label: str) -> Variant:
    if label not in (found := _chosen(study)):
        raise ValueError(f"{study} has no rows of {label!r}; {hint(label, found)}choose among {', '.join(found)}")
    return _chosen(study)[label]


def _difference(study: str, ours: str, base: str, what: str) -> Mean:
    return paired(_variant(study, ours), _variant(study, base), what)


def _signed(m: Mean) -> str:
    value, half = 100 * m.value, 100 * m.half
    number = f"{value:+.1f}".replace("-", "−")
    return number if math.isnan(half) else f"{number} ± {half:.1f}"


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def gain(study: str, ours: str, base: str, what: str) -> str:
    """The paired difference of two labels with its 95 % interval, such as "+2.1 ± 0.6 pp". what: "id" or "ood"."""
    return _unbroken(f"{_signed(_difference(study, ours, base, what))} pp")


def score(study: str, label: str, what: str) -> str:
    """A label's mean accuracy with its 95 % interval over seeds, such as "47.7 ± 1.9 %". what: "id" or "ood"."""
    return _unbroken(f"{_variant(study, label).of(what)} %")


def seeds(study: str, label: str) -> str:
    """How many seeds a label has."""
    return str(len(_variant(study, label).rows))


def table(study: str, base: str, *labels: str) -> str:
    """Accuracies in % of `base` and `labels`, and differences to `base`, highest OOD accuracy first."""
    lines = ["| Method | ID | OOD | Δ ID (pp) | Δ OOD (pp) | seeds |", "|---|---:|---:|---:|---:|---:|"]
    for label in sorted((base, *labels), key=lambda name: -_variant(study, name).of("ood").value):
        v = _variant(study, label)
        delta = ("", "") if label == base else (_signed(_difference(study, label, base, w)) for w in ("id", "ood"))
        cells = [DISPLAY[label], v.of("id"), v.of("ood"), *delta, len(v.rows)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


@lru_cache(maxsize=1)
def _regrets() -> dict[str, dict[str, Mean]]:
    return regrets(regimes_committed())


def regret_of(label: str) -> str:
    """A label's mean OOD regret over the three regimes with its 95 % interval, such as "1.5 ± 1.0 pp"."""
    return _unbroken(f"{_regrets()[label]['mean']} pp")


def regret_table() -> str:
    """OOD regret in pp of the twelve labels with the lowest mean over the three regimes, of those complete in all."""
    found = dict(list(_regrets().items())[:12])
    head = [*next(iter(found.values()))]
    lines = [f"| Method | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    lines += [f"| {DISPLAY[label]} | {' | '.join(str(of[what]) for what in head)} |" for label, of in found.items()]
    return "\n".join(lines)


def labels() -> str:
    """Every label of the studies with its name in prose and what its method does."""
    from tpgm.methods import METHODS

    entries = {label: entry for study in STUDIES.values() for label, entry in study.entries.items()}
    lines = ["| Label | Name | Method |", "|---|---|---|"]
    for label in sorted(set(entries) & set(DISPLAY)):
        entry = entries[label]
        still = entry.settings.get("alpha") == 0
        about = "no training" if still else in_markdown(METHODS[entry.method].about)
        lines.append(f"| `{label}` | {DISPLAY[label]} | {about} |")
    return "\n".join(lines)


# what is drawn on the front page: group: study, what is fine-tuned, one ratio for all tensors, a radius for each
RESULT = {
    "Zero-shot model": ("zero-shot:resnet", "vanilla", "one ratio", "tpgm-end"),
    "Robust start": ("resnet:upstream", "vanilla-bn", "wise-ft-bn", "tpgm-end-bn"),
    "Non-robust start": ("resnet:imagenet", "vanilla-bn", "wise-ft-bn", "tpgm-end-bn"),
}
_LOOK = (("one ratio for all tensors", "#D55E00", "square"), ("TPGM, a radius for each tensor", "#009E73", "circle"))


def result_svg() -> str:
    """OOD accuracy of going back, minus that of the fine-tuned model, in pp: an SVG that follows the page's theme."""
    found = [(g, [_difference(s, label, base, "ood") for label in ours]) for g, (s, base, *ours) in RESULT.items()]
    ends = [100 * (m.value + sign * m.half) for _, pair in found for m in pair for sign in (-1, 1)]
    low, high = 5 * math.floor(min(ends) / 5), 5 * math.ceil(max(ends) / 5)
    left, right, top, step = 14, 346, 62, 58

    def x(value: float) -> float:
        return round(left + (right - left) * (value - low) / (high - low), 1)

    def mark(kind: str, at: float, y: float, colour: str) -> str:
        if kind == "circle":
            return f'<circle cx="{at}" cy="{y}" r="5" fill="{colour}"/>'
        return f'<rect x="{at - 4.5}" y="{y - 4.5}" width="9" height="9" fill="{colour}"/>'

    bottom = top + step * len(found) - 14
    said = "; ".join(
        f"{g}: " + ", ".join(f"{look[0]} {_signed(m)}" for look, m in zip(_LOOK, pair, strict=True))
        for g, pair in found
    )
    parts = [
        f'<svg class="tpgm-svg" viewBox="0 0 360 {bottom + 40}" role="img" '
        f'aria-label="{html.escape(f"OOD accuracy minus the fine-tuned model in percentage points. {said}.")}">'
    ]
    for n, (name, colour, kind) in enumerate(_LOOK):
        parts.append(mark(kind, 20, 14 + 18 * n, colour))
        parts.append(f'<text x="32" y="{18 + 18 * n}">{name}</text>')
    for value in range(low, high + 1, 5):
        kind = "zero" if value == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(value)}" x2="{x(value)}" y1="{top - 16}" y2="{bottom}"/>')
        number = f"{value:+d}".replace("-", "−") if value else "0"
        parts.append(f'<text class="middle" x="{x(value)}" y="{bottom + 15}">{number}</text>')
    for n, (group, pair) in enumerate(found):
        y = top + step * n
        parts.append(f'<text class="strong" x="{left}" y="{y - 4}">{group}</text>')
        for (_, colour, kind), m, way in zip(_LOOK, pair, (12, 28), strict=True):
            a, b = x(100 * (m.value - m.half)), x(100 * (m.value + m.half))
            parts.append(f'<line x1="{a}" x2="{b}" y1="{y + way}" y2="{y + way}" stroke="{colour}" stroke-width="2"/>')
            parts.append(mark(kind, x(100 * m.value), y + way, colour))
    parts.append(f'<text class="middle" x="180" y="{bottom + 33}">OOD accuracy minus the fine-tuned model (pp)</text>')
    return "".join([*parts, "</svg>"])


# --- from the command line's parser


def commands() -> str:
    """A section for each command: what it does, how it is called, each argument, examples."""
    return "\n\n".join(_command(name, about, parser) for name, about, parser in subcommands())


def subcommands() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, one line of help and parser of each command, in the order of ``tpgm --help``."""
    from tpgm.cli import _parser

    (group,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    for choice in group._choices_actions:
        yield choice.dest, choice.help or "", group.choices[choice.dest]


def _command(name: str, about: str, parser: argparse.ArgumentParser) -> str:
    lines = [f"(command-{name})=", f"## tpgm {name}", "", f"{in_markdown(about[:1].upper() + about[1:])}.", ""]
    lines += ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if action.dest not in ("help", "debug"):
            lines.append(f"| {_spelled(action)} | {_meaning(action)} |")
    if parser.epilog:
        # "Examples: one; two. And a sentence." has its commands where "tpgm" begins
        text = re.sub(r"^Examples?: ", "", parser.epilog)
        shown, *said = re.split(r"\. (?=[A-Z])", text, maxsplit=1)
        lines += ["", "```bash", *re.split(r"; (?=tpgm )", shown.removesuffix(".")), "```", *(f"\n{s}" for s in said)]
    return "\n".join(lines)


def _spelled(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}{' …' if action.nargs == '+' else ''}`"
    value = action.metavar or action.dest.upper()
    shown = " ".join(value) if isinstance(value, tuple) else str(value)
    return f"`{', '.join(action.option_strings)}{'' if action.nargs == 0 else f' {shown}'}`"


def _meaning(action: argparse.Action) -> str:
    said = [in_markdown(action.help)] if action.help else []
    if action.choices:
        said.append(f"one of {', '.join(f'`{c}`' for c in action.choices)}")
    if action.default not in (None, False, []) and "default" not in (action.help or ""):
        said.append(f"default: `{action.default}`")
    if action.nargs == "?":
        said.append("may be left out")
    if action.required and action.option_strings:
        said.append("must be given")
    if isinstance(action.default, list):
        said.append("may be given several times")
    return "; ".join(said)


# --- from pyproject.toml

WANTED = {
    "fast": "projections and optimizer steps as machine code on a CPU",
    "models": "pre-trained models of timm and torchvision, EfficientNet-Lite0",
    "clip": "CLIP models of open_clip",
    "data": "image folders and the icon benchmark",
    "train": "`tpgm.finetune` and the commands `finetune`, `predict`, `evaluate`",
    "text": "the text example",
    "hub": "`tpgm push`, and models from the Hugging Face Hub",
    "transformers": "the callback for the Trainer of transformers",
    "lightning": "the callback for Lightning",
    "theory": "the theory's code and the book's figures",
    "notebooks": "running a chapter",
    "batch": "`tpgm run`, `tpgm sweep`, `tpgm completion`",
    "book": "building this book",
    "test": "running the tests",
    "dev": "all of this, for contributors",
}


def extras() -> str:
    """What each optional dependency is for and what it brings. Raises ValueError if one has no line in `WANTED`."""
    file = _ROOT / "pyproject.toml"
    there: dict[str, list[str]] = tomllib.loads(file.read_text(encoding="utf8"))["project"]["optional-dependencies"]
    if odd := set(there) ^ set(WANTED):
        raise ValueError(f"extras of {file.name} and of tpgm.book.site.WANTED differ: {', '.join(sorted(odd))}")
    lines = ["| For | install | brings |", "|---|---|---|"]
    for name, purpose in WANTED.items():
        brings = (re.match(r"[\w-]+(\[[\w,-]+\])?", package) for package in there[name])
        packages = ", ".join(found[0] for found in brings if found)
        lines.append(f"| {purpose[:1].upper() + purpose[1:]} | `pip install '.[{name}]'` | {packages} |")
    return "\n".join(lines)


def version() -> str:
    """The package's version."""
    from tpgm import __version__

    return __version__


def date() -> str:
    """Today, such as "26 November 2026"."""
    today = datetime.date.today()
    return f"{today.day} {today:%B %Y}"


def bibtex() -> str:
    """Entries of this package, from its citation file, and of the method's paper."""
    cff = (_ROOT / "CITATION.cff").read_text(encoding="utf8")
    own = {name: value.strip('"') for name, value in re.findall(r"^([\w-]+): (.+)$", cff, re.MULTILINE)}
    authors = " and ".join(f"{{{name}}}" for name in re.findall(r"^  - name: (.+)$", cff, re.MULTILINE))
    entry = {
        "author": authors,
        "title": f"{{{own['title']}}}",
        "version": own["version"],
        "url": own["repository-code"],
    }
    lines = ",\n".join(f"  {name:8}= {{{value}}}" for name, value in entry.items())
    papers = (_ROOT / "book" / "references.bib").read_text(encoding="utf8")
    method = re.search(r"^@inproceedings\{tian2023tpgm,.*?^\}", papers, re.MULTILINE | re.DOTALL)
    assert method is not None
    return f"@software{{tpgm,\n{lines}\n}}\n\n{method[0]}"


PARTS: dict[str, Callable[..., str]] = {
    "bibtex": bibtex,
    "commands": commands,
    "date": date,
    "extras": extras,
    "gain": gain,
    "labels": labels,
    "regret": regret_of,
    "regrets": regret_table,
    "score": score,
    "seeds": seeds,
    "table": table,
    "version": version,
}

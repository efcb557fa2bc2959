"""What pages take from code and rows when they are built, and that what they say beside it still holds."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from tpgm.book import site
from tpgm.book.experiments.catalogue import STUDIES
from tpgm.book.experiments.variants import Mean

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
PAGES = sorted(BOOK.glob("*.md"))


def tool(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- marks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_mark_is_filled(page: Path) -> None:
    assert "{built}" not in site.fill(page.read_text(encoding="utf8"))


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("gains nothing", r"\{built\} 'gains': did you mean 'gain'\?"),
        ("gain zero-shot:resnt; vanilla; vanilla; ood", "unknown study 'zero-shot:resnt'; did you mean"),
        ("gain zero-shot:resnet; vanila; vanilla; ood", "has no rows of 'vanila'; did you mean 'vanilla'"),
    ],
)
def test_a_mark_that_asks_for_what_is_not_there_stops_the_build(mark: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        site.fill(f"text {{built}}`{mark}` text")


def test_numbers_are_signed_and_have_an_interval_where_there_are_seeds() -> None:
    assert site.fill("{built}`gain zero-shot:resnet; vanilla; vanilla; ood`") == "+0.0\xa0±\xa00.0\xa0pp"
    assert re.fullmatch(r"−\d+\.\d\s±\s\d+\.\d\spp", site.gain("resnet:imagenet", "linear-probe", "vanilla-bn", "ood"))
    assert site.seeds("zero-shot:resnet", "vanilla") == "10"


# --- what the front page and the results page say in words


def difference(*what: str) -> Mean:
    return site._difference(*what)


def test_findings_hold() -> None:
    """The front page's three findings, and its caption. If one fails, the sentence must change, not this test."""
    zero, start = "zero-shot:resnet", "resnet:imagenet"
    for where in ("id", "ood"):
        one_ratio = difference(zero, "one ratio", "vanilla", where)
        assert one_ratio.value > 0, "finding 1"
        assert one_ratio.clear, "finding 1"
    in_distribution, out = (difference(zero, "tpgm-end", "vanilla", w) for w in ("id", "ood"))
    assert in_distribution.value > 0, "finding 2"
    assert in_distribution.clear, "finding 2"
    assert out.value < 0 or not out.clear, "finding 2"
    each_step = difference(start, "tpgm", "vanilla-bn", "ood")
    assert each_step.value < 0, "finding 3"
    assert each_step.clear, "finding 3"
    for study, base, _, ours in site.RESULT.values():
        assert abs(100 * difference(study, ours, base, "ood").value) < 0.7, "caption: within about half a point"
    gains, loses = (difference(f"resnet:{r}", "wise-ft-bn", "vanilla-bn", "ood") for r in ("upstream", "imagenet"))
    assert gains.value > 0 > loses.value, "caption"
    assert not gains.clear, "caption: both intervals include 0"
    assert not loses.clear, "caption: both intervals include 0"


def test_what_the_results_page_says_holds() -> None:
    assert difference("resnet:upstream", "tpgm-end", "vanilla-bn", "ood").clear, "above the best recipe"
    assert difference("resnet:upstream", "tpgm-end", "vanilla-bn", "id").value < 0, "lower on average"
    assert difference("resnet:imagenet", "tpgm", "vanilla-bn", "ood").clear, "falls behind"
    ours = [site._variant("resnet:imagenet", label).of("ood").value for label in site._chosen("resnet:imagenet")]
    assert site._variant("resnet:imagenet", "vanilla-bn").of("ood").value == max(ours), "the highest OOD accuracy"
    assert not difference("resnet:imagenet", "tpgm-end-bn", "vanilla-bn", "ood").clear, "TPGM at the end keeps it"


def test_the_result_figure_says_the_same_as_the_rows_and_keeps_inside_its_frame() -> None:
    svg = ElementTree.fromstring(site.result_svg())
    for study, base, *ours in site.RESULT.values():
        for label in ours:
            assert site._signed(difference(study, label, base, "ood")) in svg.attrib["aria-label"]
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    for element in svg:
        for name, most in (("x1", width), ("x2", width), ("cx", width), ("y1", height), ("y2", height), ("y", height)):
            assert 0 <= float(element.get(name, 0)) <= most


# --- tables


def test_a_table_is_ordered_and_leaves_the_base_without_differences() -> None:
    lines = site.table("zero-shot:resnet", "vanilla", "tpgm-end", "one ratio").splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == ["One ratio", "Vanilla", "TPGM at the end"]
    assert [bool(row[3]) for row in cells] == [True, False, True]


def test_tables_of_the_results_page_have_at_most_twelve_rows_and_seven_columns() -> None:
    tables = re.findall(r"(?:^\|.*\n)+", site.fill((BOOK / "results.md").read_text(encoding="utf8")), re.MULTILINE)
    assert len(tables) == 6
    for table in tables:
        rows = table.strip().splitlines()
        assert len(rows) - 2 <= 12
        assert rows[0].count("|") - 1 <= 7


def test_every_label_of_a_study_has_a_name() -> None:
    unnamed = {label for study in STUDIES.values() for label in study.entries} - set(site.DISPLAY)
    assert {label for label in unnamed if not label.startswith("path, ")} == set()
    assert len(set(site.DISPLAY.values())) == len(site.DISPLAY)
    assert all(f"| `{label}` |" in site.labels() for label in site.DISPLAY)


# --- commands


def test_every_command_has_a_section_with_each_of_its_arguments() -> None:
    text = site.commands()
    parts = dict(re.findall(r"^## tpgm (\S+)$(.*?)(?=^\(command-|\Z)", text, re.MULTILINE | re.DOTALL))
    found = list(site.subcommands())
    assert len(found) > 8
    assert list(parts) == [name for name, _, _ in found]
    for name, _, parser in found:
        for action in parser._actions:
            if action.dest in ("help", "debug"):
                continue
            spelled = action.option_strings or [action.metavar or action.dest]
            assert all(f"`{s}" in parts[name] or f", {s}" in parts[name] for s in map(str, spelled)), (name, spelled)


def test_every_example_of_the_commands_page_is_one_that_the_parser_takes() -> None:
    from tpgm.cli import _parser

    examples = [
        line for block in re.findall(r"```bash\n(.*?)```", site.commands(), re.DOTALL) for line in block.split("\n")
    ]
    examples = [line for line in examples if line]
    assert len(examples) > 10
    for example in examples:
        words = example.split(" > ")[0].split()
        assert words[0] == "tpgm", example
        _parser().parse_args(words[1:])


# --- extras


def test_every_extra_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["optional-dependencies"]
    text = site.extras()
    for name, packages in declared.items():
        assert f"'.[{name}]'" in text
        line = next(line for line in text.splitlines() if f"'.[{name}]'" in line)
        assert all(re.split(r"[\[<>=]", package)[0] in line for package in packages)
    monkeypatch.delitem(site.WANTED, "text")
    with pytest.raises(ValueError, match=r"differ: text$"):
        site.extras()


def test_messages_that_name_an_extra_name_one_that_exists() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["optional-dependencies"]
    written = {*(ROOT / "tpgm").rglob("*.py"), *PAGES}
    named = {
        extra
        for path in written
        for found in re.findall(r"(?:tpgm|\.)\[([a-z,]+)\]", path.read_text(encoding="utf8"))
        for extra in found.split(",")
    }
    assert {"train", "lightning", "transformers", "theory"} <= named
    assert named <= set(declared)


# --- quoted messages


def constants(tree: ast.AST) -> list[str]:
    """The text of every string in a module; an f-string as one text with "…" for what is filled in."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def spoken() -> str:
    return "\0".join(t for p in (ROOT / "tpgm").rglob("*.py") for t in constants(ast.parse(p.read_text("utf8"))))


def quoted() -> list[str]:
    text = (BOOK / "troubleshooting.md").read_text(encoding="utf8")
    return [message.strip() for message in re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def is_spoken(message: str, among: str) -> bool:
    """Whether one string of the source has the parts of the message between its "…", in this order."""
    parts = [re.escape(part) for part in message.replace("…", "\0").split("\0") if part]
    return re.search("[^\0]*".join(parts), among) is not None


def test_quoted_messages_are_those_of_the_source() -> None:
    among, messages = spoken(), quoted()
    assert len(messages) >= 25
    assert [message for message in messages if not is_spoken(message, among)] == []
    assert not is_spoken("…: no such folder; it must hold a folder of pictures for each class", among)
    assert not is_spoken("…: no such folder; …: pattern … matches no parameter", among), "parts of two messages"


def test_every_quoted_message_has_a_cause_and_a_cure() -> None:
    text = (BOOK / "troubleshooting.md").read_text(encoding="utf8")
    messages = text.split("## Questions")[0]
    after = re.split(r"^```text\n.*?^```$", messages, flags=re.MULTILINE | re.DOTALL)[1:]
    assert all(re.search(r"\*\*Cause\b", part) and re.search(r"\bcure\b", part, re.IGNORECASE) for part in after)


# --- the extension


def test_the_description_is_the_first_paragraph_cut_at_a_sentence() -> None:
    from docutils.core import publish_doctree

    built = tool(BOOK / "_ext" / "built.py")
    first = "The first sentence has an end. " * 3
    long = first + "The next one has none before two hundred characters " + "on " * 60
    for text, wanted in (
        ("A short sentence stands here alone.",) * 2,
        (long, first.strip()),
    ):
        doctree: Any = publish_doctree(
            f"Title\n=====\n\n* a list of one line that is long enough\n\nA word.\n\n{text}\n"
        )
        assert built.description(doctree) == wanted

"""A grid file: which runs a sweep is made of.

    notebook: 03_ratios          # a chapter's name or a path; or experiment: true; or protocol: STUDY
    fixed: {profile: full}       # the same in every run
    product: {seed: [0, 1, 2]}   # every combination
    zip: {a: [1, 2], b: [3, 4]}  # varied together
    include: [{seed: 9}]         # further runs
    exclude: [{seed: 1, a: 2}]   # without the runs that agree with all of this
    profiles:                    # what --profile NAME changes above
      smoke: {product: {seed: [0]}}

``settings.lr`` names the entry ``lr`` of the parameter ``settings``. Several such sections: ``runs: [...]``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpgm.book.experiments.study import Study
from tpgm.book.notebook import PROFILES
from tpgm.book.sweep.jobs import Job

_KINDS = ("notebook", "experiment", "protocol")
_PARTS: dict[str, type] = {"fixed": dict, "product": dict, "zip": dict, "include": list, "exclude": list}
_KEYS = (*_KINDS, *_PARTS, "profiles")


@dataclass
class Plan:
    """The jobs of a grid, and the studies, whose second half is known only when the first has rows."""

    jobs: list[Job]
    studies: list[Study] = field(default_factory=list)

    def due(self, rows: Iterable[Mapping[str, Any]] = ()) -> list[Job]:
        """All jobs that can be named by now, done or not, each once. rows: the result rows there are."""
        known = [dict(row) for row in rows if "config" in row]
        found = [*self.jobs, *(Job.of_experiment(config) for study in self.studies for config in study.plan(known))]
        return list({job.name: job for job in found}.values())


def read_grid(path: str | Path, profile: str | None = None) -> Plan:
    """The plan in a grid file. All of it is checked here, before any work.

    profile: a name of the file's own ``profiles``, or of a notebook's sizes ("smoke", "quick", "full"). Raises
    ValueError naming the file and the section for what is wrong, FileNotFoundError if there is no such file.
    """
    from tpgm.book.sweep.notebooks import find

    path = find(path, "experiments", "yaml")
    content = _yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold a mapping with one of the keys {', '.join(_KINDS)}")
    several = "runs" in content
    if several and (len(content) > 1 or not isinstance(content["runs"], list) or not content["runs"]):
        raise ValueError(f"{path.name}: beside 'runs', a list of sections, nothing else can stand at the top")
    plan = Plan([])
    for number, section in enumerate(content["runs"] if several else [content], start=1):
        try:
            _add(plan, section, profile, path.parent)
        except (ValueError, TypeError, FileNotFoundError) as error:
            where = f"{path.name}, section {number}" if several else path.name
            raise ValueError(f"{where}: {error}{_why(str(error))}") from error
    plan.jobs = list({job.name: job for job in plan.jobs}.values())
    if not plan.jobs and not plan.studies:
        raise ValueError(f"{path.name} leaves no run")
    return plan


def _yaml(path: Path) -> Any:
    """What a YAML file holds. Raises ValueError for what is no YAML, and for a key that stands twice in a mapping."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if odd := [key for key in keys if not isinstance(key, str | int | float)]:
                raise ValueError(f"{path.name}, line {node.start_mark.line + 1}: the key {odd[0]!r} must be a name")
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise ValueError(
                    f"{path.name}, line {node.start_mark.line + 1}: the key {twice[0]!r} is given twice: give it once"
                )
            return dict(super().construct_mapping(node, deep=deep))

    try:
        return yaml.load(path.read_text(encoding="utf8"), Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is no YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is no YAML: it is not text in UTF-8 ({error}); save it as such") from error
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be read as a YAML file: {error.strerror}") from error
    except (TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path.name} is YAML with keys or values of no use here: {error}") from error


def _add(plan: Plan, section: Any, profile: str | None, beside: Path) -> None:
    if not isinstance(section, dict):
        raise ValueError(f"a section is a mapping, got {section!r}")
    if unknown := [key for key in section if key not in _KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r}; a section has {', '.join(_KEYS)}")
    kinds = [kind for kind in _KINDS if kind in section]
    if len(kinds) != 1:
        raise ValueError(f"a section says exactly one of {', '.join(_KINDS)}, this one {', '.join(kinds) or 'none'}")
    section = _with_profile(section, kinds[0], profile)
    if kinds[0] == "protocol":
        plan.studies.append(_study_of(section))
        return
    runs = list(expand(section))
    if kinds[0] == "experiment":
        if section["experiment"] is not True:
            raise ValueError(f"say 'experiment: true', got {section['experiment']!r}")
        plan.jobs += [Job.of_experiment(run) for run in runs]
    else:
        name = section["notebook"]
        if not isinstance(name, str):
            raise ValueError(f"notebook must be a name or a path, got {name!r}")
        notebook = beside / name if (beside / name).is_file() else name
        plan.jobs += [Job.of_notebook(notebook, run) for run in runs]


def _study_of(section: Mapping[str, Any]) -> Study:
    from tpgm.book.experiments.catalogue import find_study

    if more := [key for key in section if key != "protocol"]:
        raise ValueError(f"a study is fixed; leave out {', '.join(more)}")
    return find_study(section["protocol"])


def _why(message: str) -> str:
    """What YAML has made of a value that a message calls wrong, "" if it seems to be what was meant."""
    if re.search(r"got datetime\.date", message):
        return "; YAML reads it as a date: put it in quotes"
    text, word = re.search(r"got '([^']*)'", message), re.search(r"got (True|False)", message)
    if text and re.fullmatch(r"[-+]?\d[\d_]*\.?\d*[eE][-+]?\d+", text[1]):
        return f"; YAML reads {text[1]} as text: write {float(text[1])!r}, or with a point and a signed exponent"
    return "; YAML reads no, off, yes and on as false and true: put the word in quotes" if word else ""


def _with_profile(section: Mapping[str, Any], kind: str, profile: str | None) -> dict[str, Any]:
    """The section with the changes of a profile; for a notebook the profile is also the parameter of that name."""
    profiles = section.get("profiles", {})
    changed = {key: value for key, value in section.items() if key != "profiles"}
    if not isinstance(profiles, dict):
        raise ValueError(f"profiles must be a mapping from names to changes of the section, got {profiles!r}")
    if profile is None:
        return changed
    if profile not in profiles and not (kind == "notebook" and profile in PROFILES):
        known = [*profiles, *(p for p in PROFILES if kind == "notebook" and p not in profiles)]
        cure = f"choose one of {', '.join(known)}" if known else "leave --profile out, or add it under profiles"
        raise ValueError(f"unknown profile {profile!r}{'' if known else ', as there are no profiles'}: {cure}")
    changes = profiles.get(profile) or {}
    if not isinstance(changes, dict) or not changes.keys() <= _PARTS.keys():
        raise ValueError(f"profile {profile!r} is a mapping with keys among {', '.join(_PARTS)}, got {changes!r}")
    for key, value in changes.items():
        old = changed.get(key)
        changed[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    if kind == "notebook" and profile in PROFILES:
        changed["fixed"] = {"profile": profile, **(changes.get("fixed") or {})} | {
            name: value for name, value in (changed.get("fixed") or {}).items() if name != "profile"
        }
    return changed


def expand(section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parameters of every run of one section, nested where a name has a dot. Raises ValueError for a bad grid."""
    parts = {name: section.get(name) or kind() for name, kind in _PARTS.items()}
    for name, kind in _PARTS.items():
        if not isinstance(parts[name], kind):
            raise ValueError(f"{name} must be a {'mapping' if kind is dict else 'list'}, got {parts[name]!r}")
    for name in ("product", "zip"):
        for parameter, values in parts[name].items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{name}: {parameter} needs a list of values, got {values!r}")
    for name in ("include", "exclude"):
        if wrong := [entry for entry in parts[name] if not isinstance(entry, dict) or not entry]:
            raise ValueError(f"{name} is a list of mappings, got the entry {wrong[0]!r}")
    if both := parts["product"].keys() & parts["zip"].keys():
        raise ValueError(f"{sorted(both)[0]} stands in product and in zip")
    if len({len(values) for values in parts["zip"].values()}) > 1:
        lengths = ", ".join(f"{len(values)} of {name}" for name, values in parts["zip"].items())
        raise ValueError(f"the lists of zip must be of one length, got {lengths}")
    zipped = [dict(zip(parts["zip"], values, strict=True)) for values in zip(*parts["zip"].values(), strict=True)]
    crossed = [
        dict(zip(parts["product"], values, strict=True)) for values in itertools.product(*parts["product"].values())
    ]
    # a section with include alone is those runs, not one more without them
    grid = [] if parts["include"] and not (parts["product"] or parts["zip"]) else crossed
    chosen = [{**parts["fixed"], **a, **b} for a in grid for b in (zipped or [{}])]
    kept = [run for run in chosen if not any(_agrees(run, entry) for entry in parts["exclude"])]
    for entry in parts["exclude"]:
        if not any(_agrees(run, entry) for run in chosen):
            taken = {name: dict.fromkeys(repr(run[name]) for run in chosen if name in run) for name in entry}
            told = (f"{name} is {', '.join(list(v)[:5]) or 'set nowhere'}" for name, v in taken.items())
            raise ValueError(f"exclude: no run agrees with {entry}: correct or remove this entry ({'; '.join(told)})")
    for run in [*kept, *({**parts["fixed"], **entry} for entry in parts["include"])]:
        yield _nested(run)


def _agrees(run: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    return all(name in run and run[name] == value for name, value in entry.items())


def _nested(run: Mapping[str, Any]) -> dict[str, Any]:
    """Whole entries first, then what dotted names change in them."""
    if odd := [name for name in run if not isinstance(name, str)]:
        raise ValueError(f"{odd[0]!r} is not the name of a parameter: put a text in its place")
    found = {name: dict(value) if isinstance(value, dict) else value for name, value in run.items() if "." not in name}
    for name, value in run.items():
        outer, dot, inner = name.partition(".")
        if dot:
            if not isinstance(found.setdefault(outer, {}), dict):
                raise ValueError(f"{name} needs {outer} to be a mapping, it is {found[outer]!r}")
            found[outer][inner] = value
    return found

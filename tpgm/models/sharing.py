"""Models as others expect them: a folder with weights, configuration and card, to keep or to put on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tpgm import check
from tpgm.files import make_folder, write_aside
from tpgm.models.architectures import need
from tpgm.models.loading import load
from tpgm.models.pretrained import Pretrained
from tpgm.models.storage import save
from tpgm.names import in_markdown

SHARED = ("model.safetensors", "config.json", "README.md", "result.json", "report.html", "*.png")


@check.keywords
def save_pretrained(
    folder: str | Path,
    start: Pretrained,
    model: nn.Module | None = None,
    class_names: Sequence[str] | None = None,
    *,
    result: Mapping[str, Any] | None = None,
) -> None:
    """Write ``model.safetensors`` (see `save`), ``config.json`` and the card ``README.md`` into a folder.

    start, class_names: as for `save`; model: by default ``start.model``. result: what ``result.json`` holds, whose
    accuracies, settings and command the card then tells. A model of timm's can be loaded from the folder, or from the
    Hub, by timm alone: ``timm.create_model("local-dir:FOLDER", pretrained=True)``. Raises as `save` does.
    """
    folder = check.path("folder", folder)
    make_folder(folder)
    names = start.class_names if class_names is None else tuple(class_names)
    save(folder / "model.safetensors", start, start.model if model is None else model, names)
    with write_aside(folder / "config.json") as aside:
        aside.write_text(json.dumps(_config(start, names), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with write_aside(folder / "README.md") as aside:
        aside.write_text(card(start, names, result or {}), encoding="utf-8")


@check.keywords
def from_pretrained(name: str | Path, *, revision: str | None = None, num_classes: int | None = None) -> Pretrained:
    """The model in a folder that `save_pretrained` or a run wrote, or of that name on the Hub ("user/model").

    revision: a branch, tag or commit on the Hub. num_classes: of a new head. Raises as `load` does.
    """
    if Path(name).is_dir():
        return load(name, num_classes)
    return load(f"hf-hub:{name}" + (f"@{revision}" if revision else ""), num_classes)


@check.keywords
def push_to_hub(folder: str | Path, repo: str, *, private: bool = False, message: str = "Upload model") -> str:
    """Put the folder of a run, or one that `save_pretrained` wrote, on the Hugging Face Hub; returns its address.

    repo: "user/model", made if it does not exist. Log in first by ``hf auth login``. Weights, configuration, card,
    result, report and figures go up, nothing else. Raises FileNotFoundError for a folder without them, ImportError
    without huggingface_hub, and what that raises.
    """
    folder = check.path("folder", folder)
    for name in SHARED[:3]:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file; give a finished run, or save_pretrained first")
    hub = need("huggingface_hub", "hub").HfApi(library_name="tpgm")
    hub.create_repo(repo, private=check.flag("private", private), exist_ok=True)
    done = hub.upload_folder(
        repo_id=repo, folder_path=folder.resolve(), allow_patterns=list(SHARED), commit_message=message
    )
    return str(getattr(done, "repo_url", done))


def _source(start: Pretrained) -> tuple[str, str]:
    """The library of the architecture, "" for one of the user's own, and its name there."""
    whole = "" if start.architecture is None else start.architecture.name
    library, slash, name = whole.partition("/")
    return (library, name) if slash else ("tpgm" if whole else "", whole)


def _config(start: Pretrained, names: Sequence[str] | None) -> dict[str, Any]:
    """What timm reads from a folder; of other architectures the same, for people and for the Hub."""
    library, name = _source(start)
    values, classes = start.preparation, len(start.model.get_parameter(f"{start.head}.weight"))
    prepared = {"input_size": [3, values.size, values.size], "interpolation": "bicubic", "crop_pct": 1.0}
    told = {**prepared, "mean": values.mean, "std": values.std, "num_classes": classes, "classifier": start.head}
    config = {
        "architecture": name.partition(".")[0] if library == "timm" else f"{library}/{name}",
        "num_classes": classes,
        "model_args": dict(start.architecture.options) if start.architecture else {},
        "pretrained_cfg": told,
    }
    return config if names is None else {**config, "label_names": list(names)}


def card(start: Pretrained, names: Sequence[str] | None, result: Mapping[str, Any]) -> str:
    """README.md with the YAML header that the Hub reads. Raises ImportError without huggingface_hub."""
    hub = need("huggingface_hub", "hub")
    library, name = _source(start)
    timm, size = library == "timm", start.preparation.size
    data = result.get("data", {}).get("name", "")
    of = {"task_type": "image-classification", "dataset_type": data, "metric_type": "accuracy"}
    tests = {test: found for test, found in result.get("accuracies", {}).items() if test != "val"}
    results = [
        hub.EvalResult(**of, dataset_name=data, dataset_split=test, metric_value=round(found["accuracy"], 4))
        for test, found in tests.items()
    ]
    head = hub.ModelCardData(
        library_name="timm" if timm else "tpgm",
        pipeline_tag="image-classification",
        base_model=f"timm/{name}" if timm and "." in name else None,
        tags=["image-classification", "robust-fine-tuning", "tpgm", *(["timm"] if timm else [])],
        **({"metrics": ["accuracy"], "model_name": start.name, "eval_results": results} if results else {}),
    )
    lines = ["---", head.to_yaml().strip(), "---", "", f"# {in_markdown(start.name)}", ""]
    if result:
        lines += [f"Fine-tuned by the method `{result['method']}` of the Python package tpgm.", ""]
    lines += [f"Input: RGB, {size} x {size} pixels, mean {start.preparation.mean}, std {start.preparation.std}.", ""]
    if names is not None:
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        lines += [f"{len(names)} classes: {in_markdown(', '.join(names[:20]))}{more}.", ""]
    if tests:
        lines += ["| test | accuracy | 95 % interval | images |", "|---|---:|---:|---:|"]
        for test, found in tests.items():
            score, low, high = (100 * share for share in (found["accuracy"], *found["interval"]))
            lines.append(f"| {in_markdown(test)} | {score:.1f} | {low:.1f} to {high:.1f} | {found['total']} |")
        lines.append("")
    own = 'start = tpgm.models.from_pretrained("FOLDER")  # or "user/model", on the Hub'
    lines += ["## Use", "", "```python", "import tpgm", "", own, 'start.predict("photo.jpg")', "```", ""]
    if timm:
        alone = 'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:user/model"'
        lines += ["The same weights by timm alone:", "", "```python", "import timm", "", alone, "```", ""]
    if result:
        versions = ", ".join(f"{package} {version}" for package, version in result.get("versions", {}).items())
        lines += ["## How it was made", "", "```text", str(result.get("command", "")), "```", ""]
        lines += [f"Settings: `{json.dumps(result['settings'])}`", "", f"Versions: {versions}.", ""]
    return "\n".join(lines)

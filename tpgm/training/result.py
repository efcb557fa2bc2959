"""What a fine-tuning run leaves behind."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tpgm.data import DataSplits
from tpgm.methods import Settings
from tpgm.models.pretrained import Pretrained
from tpgm.names import in_markdown
from tpgm.training.batches import content, content_of, derive
from tpgm.training.evaluate import Accuracy, mean_accuracy


@dataclass
class Result:
    """What `finetune` returns.

    model: the fine-tuned model, in eval mode. accuracies: of "val", "id_test" and every OOD test by name; history: one
    entry an epoch; ratios, radii: by parameter name, for methods that learn them (where
    every step is projected, the ratios are those of the last step alone; the radii tell what the run permitted); path:
    accuracies of WiSE-FT's ratios; seconds: of training, without the final evaluation. about: model, data, versions,
    hardware and the command that repeats the run, JSON values.
    """

    method: str
    settings: Settings
    model: nn.Module
    class_names: tuple[str, ...]
    accuracies: dict[str, Accuracy]
    history: list[dict[str, float]]
    ratios: dict[str, float]
    radii: dict[str, float]
    path: dict[float, dict[str, Accuracy]]
    seconds: float
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def ood(self) -> dict[str, Accuracy]:
        return {name: a for name, a in self.accuracies.items() if name not in ("val", "id_test")}

    def row(self) -> dict[str, Any]:
        """The result as JSON values, without the model."""
        accuracies = {
            name: {**a.counts, "accuracy": a.value, "interval": a.interval} for name, a in self.accuracies.items()
        }
        return {
            "method": self.method,
            "settings": self.settings,
            "accuracies": accuracies,
            "ood_mean": mean_accuracy(self.ood) if self.ood else None,
            "history": self.history,
            "ratios": self.ratios,
            "radii": {name: r if math.isfinite(r) else None for name, r in self.radii.items()},
            "path": {str(a): {n: v.counts for n, v in accs.items()} for a, accs in self.path.items()},
            "seconds": self.seconds,
            **self.about,
        }

    def table(self) -> str:
        """The accuracies as a Markdown table with 95 % intervals, in per cent."""
        rows = ["| data | accuracy | 95 % interval | images |", "|---|---:|---:|---:|"]
        for name, a in self.accuracies.items():
            low, high = a.interval
            rows.append(
                f"| {in_markdown(name)} | {100 * a.value:.1f} | {100 * low:.1f} to {100 * high:.1f} | {a.total} |"
            )
        if self.ood:
            rows.append(f"| OOD mean | {100 * mean_accuracy(self.ood):.1f} | | |")
        return "\n".join(rows)


def origin(start: Pretrained, data: DataSplits) -> dict[str, Any]:
    """The model and the data of a run as JSON values, each with a checksum of its content."""
    parts = {"train": data.train, "val": data.val, "id_test": data.id_test, **data.ood_tests}
    sums = [(content(part), derive(0, *part.labels.tolist())) for part in parts.values()]
    model = {
        "name": start.name,
        "size": start.preparation.size,
        "architecture": None if start.architecture is None else start.architecture.name,
        "checksum": content_of(start.anchor.values()),
    }
    images = {name: len(part) for name, part in parts.items()}
    of = {"name": data.name, "id_domain": data.id_domain, "classes": len(data.class_names), "images": images}
    return {"model": model, "data": {**of, "checksum": hashlib.sha256(repr(sums).encode()).hexdigest()[:16]}}

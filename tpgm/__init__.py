"""Robust fine-tuning in PyTorch: trainable projected gradients (TPGM), its relatives and the baselines."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpgm.averaging import model_stock, soup
    from tpgm.comparing import compare
    from tpgm.constraint import TPGM
    from tpgm.inference import evaluate, predict
    from tpgm.interpolation import interpolate
    from tpgm.projection import project
    from tpgm.reporting import report
    from tpgm.training import finetune

__all__ = [
    "TPGM",
    "compare",
    "evaluate",
    "finetune",
    "interpolate",
    "model_stock",
    "predict",
    "project",
    "report",
    "soup",
]
__version__ = "0.1.0"

# imported when first asked for: the command line's help should not wait for torch, nor a constraint for accelerate
_HOME = {
    "TPGM": "tpgm.constraint",
    "compare": "tpgm.comparing",
    "evaluate": "tpgm.inference",
    "finetune": "tpgm.training.loop",
    "interpolate": "tpgm.interpolation",
    "model_stock": "tpgm.averaging",
    "predict": "tpgm.inference",
    "project": "tpgm.projection",
    "report": "tpgm.reporting",
    "soup": "tpgm.averaging",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

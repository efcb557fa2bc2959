"""Robust fine-tuning in PyTorch: trainable projected gradients (TPGM), its relatives and the baselines."""

from typing import TYPE_CHECKING, Any

from tpgm.constraint import TPGM
from tpgm.interpolation import interpolate
from tpgm.projection import project

if TYPE_CHECKING:
    from tpgm.summary import report
    from tpgm.training import finetune

__all__ = ["TPGM", "finetune", "interpolate", "project", "report"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # the training loop needs accelerate and more; who only wants the constraint should not wait for them
    if name == "finetune":
        from tpgm.training import finetune

        return finetune
    if name == "report":
        from tpgm.summary import report

        return report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

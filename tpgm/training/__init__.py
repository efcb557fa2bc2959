"""One training loop for every method, and what surrounds it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpgm.training.loop import finetune
    from tpgm.training.result import Result

__all__ = ["Result", "finetune"]


def __getattr__(name: str) -> Any:
    # batches and accuracies can be had without what the loop needs (accelerate, tqdm)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'loop' if name == 'finetune' else 'result'}"), name)

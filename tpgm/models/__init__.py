"""Pre-trained models: one function gives the model, its anchor and the names to exclude from projection."""

from typing import TYPE_CHECKING, Any

from tpgm.models.architectures import Architecture
from tpgm.models.hubs import OFFLINE
from tpgm.models.loading import load
from tpgm.models.pretrained import Pretrained
from tpgm.models.storage import save

if TYPE_CHECKING:
    from tpgm.training.pretraining import pretrain

__all__ = ["OFFLINE", "Architecture", "Pretrained", "load", "pretrain", "save"]


def __getattr__(name: str) -> Any:
    if name == "pretrain":  # it trains, and so stands with the training loop, which needs this package
        from tpgm.training.pretraining import pretrain

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Pre-trained models: one function gives the model, its anchor and the names to exclude from projection."""

from tpgm.models.architectures import Architecture
from tpgm.models.hubs import OFFLINE
from tpgm.models.loading import load
from tpgm.models.pretrained import Pretrained
from tpgm.models.sharing import from_pretrained, push_to_hub, save_pretrained
from tpgm.models.storage import save

__all__ = [
    "OFFLINE",
    "Architecture",
    "Pretrained",
    "from_pretrained",
    "load",
    "push_to_hub",
    "save",
    "save_pretrained",
]

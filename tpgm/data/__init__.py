"""Real images: each function gives train, validation, ID test and named OOD tests in one shape, DataSplits.

A package may add data sets of its own by an entry point of the group ``tpgm.data``, whose name is then an attribute of
this module. This project's book adds three: `icons`, its benchmark, `domainnet` and `imagenet`.
"""

from importlib.metadata import entry_points
from typing import Any

from tpgm.data.folders import image_folder
from tpgm.data.images import broken_images, resize_and_crop
from tpgm.data.preparation import Preparation
from tpgm.data.splits import DataSplits, ImageArray, ImageFiles, LabelledData

__all__ = [
    "DataSplits",
    "ImageArray",
    "ImageFiles",
    "LabelledData",
    "Preparation",
    "broken_images",
    "image_folder",
    "resize_and_crop",
]


def __getattr__(name: str) -> Any:
    for found in entry_points(group="tpgm.data", name=name):
        return found.load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Real images: each function gives train, validation, ID test and named OOD tests in one shape, DataSplits."""

from tpgm.data.domainnet import domainnet
from tpgm.data.folders import image_folder, resize_and_crop
from tpgm.data.iconify import IconSet
from tpgm.data.icons import IconCollection, icon_collection, icons, icons_upstream
from tpgm.data.imagenet import imagenet
from tpgm.data.preparation import Preparation
from tpgm.data.render import DOMAINS
from tpgm.data.splits import DataSplits, ImageArray, ImageFiles, LabelledData

__all__ = [
    "DOMAINS",
    "DataSplits",
    "IconCollection",
    "IconSet",
    "ImageArray",
    "ImageFiles",
    "LabelledData",
    "Preparation",
    "domainnet",
    "icon_collection",
    "icons",
    "icons_upstream",
    "image_folder",
    "imagenet",
    "resize_and_crop",
]

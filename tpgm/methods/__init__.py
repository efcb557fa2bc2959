"""Every method that `tpgm.finetune` knows: one file each, registered when this package is imported."""

from importlib import import_module
from pkgutil import iter_modules

from tpgm.methods.base import (
    METHODS,
    Context,
    Learner,
    Method,
    Settings,
    Stage,
    make,
    options,
    other_default,
    parse,
    register,
    resolve,
    setting,
    valid_values,
)

__all__ = [
    "METHODS",
    "Context",
    "Learner",
    "Method",
    "Settings",
    "Stage",
    "make",
    "options",
    "other_default",
    "parse",
    "register",
    "resolve",
    "setting",
    "valid_values",
]

for _file in iter_modules(__path__):  # whatever file is added here is known
    import_module(f"{__name__}.{_file.name}")

"""One check for each kind of argument. Errors name the argument, the value and the cure.

A value that could also stand on a command line or in YAML (a number, a flag, a choice) raises ValueError, an object of
another kind TypeError. Doors that are called seldom look at every number of a tensor for NaN: `tpgm.TPGM` and the
optimizers at anchors when constructed and at states when loaded, `tpgm.project` and `tpgm.interpolate` at all they are
given. ``update``, ``project_`` and ``projected`` see NaN in the norms they measure anyway; ``project_(unmoved=True)``
and the optimizers' steps do not look.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def shown(value: object) -> str:
    """A value in an error message, in at most 80 characters."""
    if isinstance(value, nn.Module | Tensor):
        return f"a {type(value).__name__}" + (f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "")
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}… ({type(value).__name__})"


def hint(name: object, known: Iterable[str]) -> str:
    """ "did you mean 'x'? " with the nearest of the known names, for an error message; "" if none is near."""
    by_case = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), list(by_case), n=1)
    return f"did you mean {by_case[near[0]]!r}? " if near else ""


# --- values


def range_of(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> str:
    """A range in words; above, below: without its low or high end."""
    if math.isfinite(high) and not (above or below):
        return f"between {low:g} and {high:g}"
    least = f"{'above' if above else 'at least'} {low:g}" if math.isfinite(low) else ""
    most = f"{'below' if below else 'at most'} {high:g}" if math.isfinite(high) else ""
    return " and ".join(filter(None, (least, most)))


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
    below: bool = False,
) -> Any:
    """A finite number in a range, as int or float; numbers of numpy and tensors of one number are taken, bool is not.

    whole: int only. above, below: the ends of the range do not belong to it. Raises ValueError.
    """
    plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta else value
    kind = Integral if whole else Real
    words = " ".join(
        filter(
            None, (f"must be a {'whole' if whole else 'finite'} number", range_of(low, high, above=above, below=below))
        )
    )
    if isinstance(plain, bool) or not isinstance(plain, kind):
        raise ValueError(f"{name} {words}, got {shown(value)}")
    plain = int(plain) if isinstance(plain, Integral) else float(plain)
    inside = (low < plain if above else low <= plain) and (plain < high if below else plain <= high)
    if not (inside and math.isfinite(plain)):
        raise ValueError(f"{name} {words}, got {plain}")
    return plain


def flag(name: str, value: Any) -> bool:
    """True or False. Raises ValueError for anything else: "no" would count as true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return value


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known words. Raises ValueError naming them."""
    if not (isinstance(value, str) and value in (known := tuple(known))):
        near = hint(value, known).strip()
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, known))}, got {shown(value)}{near and '; ' + near}"
        )
    return value


# --- objects


def text(name: str, value: Any) -> str:
    """A text. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {shown(value)}")
    return value


def sequence(name: str, value: Any, of: str = "pattern") -> tuple[str, ...]:
    """Texts as a tuple. Raises TypeError for a single one, which would be read letter by letter, and for None."""
    if isinstance(value, str):
        raise TypeError(f"{name} takes a sequence of {of}s; write {name}=[{value!r}]")
    if not isinstance(value, Iterable) or isinstance(value, Tensor | nn.Module):
        raise TypeError(f"{name} takes a sequence of {of}s, () for none, got {shown(value)}")
    found = tuple(value)
    if bad := [one for one in found if not isinstance(one, str)]:
        raise TypeError(f"{name} takes a sequence of {of}s, each a text such as 'head.*', got {shown(bad[0])}")
    return found


def mapping(name: str, value: Any, of: str) -> Mapping[str, Any]:
    """A mapping by name; of: what it should be, with an example. Raises TypeError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a mapping, {of}, got {shown(value)}")
    return value


def module(name: str, value: Any) -> nn.Module:
    """A model. Raises TypeError."""
    if not isinstance(value, nn.Module):
        raise TypeError(
            f"{name} must be an nn.Module (an instance, not a class, path or state dict), got {shown(value)}"
        )
    return value


def function(name: str, value: Any, about: str) -> Any:
    """Something that can be called; about: with what, giving what. Raises TypeError."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, {about}, got {shown(value)}")
    return value


def path(name: str, value: Any) -> Path:
    """A path. Raises TypeError for another kind, ValueError for an empty one."""
    if not isinstance(value, str | PathLike):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    if not str(value).strip():
        raise ValueError(f"{name} is an empty path ({value!r}): name a file or folder, '.' for this folder")
    return Path(value)


def dtype(name: str, value: Any) -> torch.dtype:
    """A floating-point type. Raises TypeError for a word, naming torch's own, ValueError for another type."""
    if not isinstance(value, torch.dtype):
        known = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "half": "float16", "float16": "float16"}
        raise TypeError(
            f"{name} must be a torch.dtype such as torch.{known.get(str(value), 'bfloat16')}, got {value!r}"
        )
    if not value.is_floating_point:
        raise ValueError(f"{name} must be a floating-point type such as torch.bfloat16, got {value}")
    return value


def device(name: str, value: Any) -> torch.device:
    """A device that is there. Raises ValueError."""
    try:
        found = torch.device(value)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise ValueError(
            f"{name} must be a device that is there, such as 'cpu' or 'cuda:0', got {value!r} ({reason})"
        ) from None
    return found


def tensor(name: str, value: Any) -> Tensor:
    """A tensor of real floating-point numbers. Raises TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {shown(value)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}: convert it by .float()")
    return value


def broken(value: Tensor) -> str | None:
    """What is wrong with a tensor's numbers, None if all are finite. A pass over it, and on a GPU a wait for it."""
    if value.is_meta:
        return "is on the meta device, which holds no numbers"
    if bool(torch.isfinite(value).all()):
        return None
    return "holds NaN" if bool(torch.isnan(value).any()) else "holds infinite values (inf)"


def finite(tensors: Mapping[str, Tensor], cure: str) -> None:
    """Raise ValueError, with names, for tensors that hold NaN or infinite values."""
    if bad := [f"{name} {what}" for name, value in tensors.items() if (what := broken(value))]:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(f"{', '.join(bad[:5])}{more}; {cure}")


# --- calls


def keywords(called: Callable[P, R]) -> Callable[P, R]:
    """Decorator: an unknown keyword is answered with those that come close."""
    known = list(inspect.signature(called).parameters)

    @functools.wraps(called)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if unknown := [name for name in kwargs if name not in known]:
            what = called.__qualname__.removesuffix(".__init__")
            takes = ", ".join(name for name in known if name != "self")
            raise TypeError(f"{what} has no argument {unknown[0]!r}; {hint(unknown[0], known)}It takes {takes}")
        return called(*args, **kwargs)

    return call

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
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    least = f"{'above' if above else 'at least'} {low:g}" * math.isfinite(low)
    most = f"{'below' if below else 'at most'} {high:g}" * math.isfinite(high)
    closed = least and most and not (above or below)
    return f"between {low:g} and {high:g}" if closed else " and ".join(filter(None, (least, most)))


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
    good = isinstance(plain, Integral if whole else Real) and not isinstance(plain, bool)
    if good:
        plain = int(plain) if isinstance(plain, Integral) else float(plain)
        ends = (above and plain == low) or (below and plain == high)
        good = math.isfinite(plain) and low <= plain <= high and not ends
    if not good:
        words = f"a {'whole' if whole else 'finite'} number {range_of(low, high, above=above, below=below)}".strip()
        raise ValueError(f"{name} must be {words}, got {plain if isinstance(plain, int | float) else shown(plain)}")
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


def instance(name: str, value: Any, kinds: Any, about: str) -> Any:
    """The value if it is of these types; about: what it must be. Raises TypeError."""
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {about}, got {shown(value)}")
    return value


def module(name: str, value: Any) -> nn.Module:
    """A model. Raises TypeError."""
    return instance(name, value, nn.Module, "an nn.Module (an instance, not a class or a state dict)")  # type: ignore[no-any-return]


def sequence(name: str, value: Any, of: str = "pattern") -> tuple[str, ...]:
    """Texts as a tuple. Raises TypeError for a single one, which would be read letter by letter, and for None."""
    if isinstance(value, str):
        raise TypeError(f"{name} takes a sequence of {of}s; write {name}=[{value!r}]")
    found = tuple(instance(name, value, Iterable, f"a sequence of {of}s, () for none"))
    for one in found:
        instance(f"each {of} in {name}", one, str, "a text")
    return found


def mapping(name: str, value: Any, about: str) -> Any:
    """A mapping by name; about: from which names to what. Raises TypeError."""
    for key in instance(name, value, Mapping, f"a mapping {about}"):
        instance(f"each key of {name}", key, str, "a name")
    return value


def path(name: str, value: Any, about: str = "a path") -> Path:
    """A path. Raises TypeError for another kind, ValueError for an empty one."""
    if not str(instance(name, value, str | PathLike, about)).strip():
        raise ValueError(f"{name} is an empty path ({value!r}): name a file or folder, '.' for this folder")
    return Path(value)


def dtype(name: str, value: Any) -> torch.dtype:
    """A floating-point type. Raises TypeError for a word, ValueError for another type."""
    if not instance(
        name, value, torch.dtype, "a torch.dtype such as torch.bfloat16 or torch.float16"
    ).is_floating_point:
        raise ValueError(f"{name} must be a floating-point type such as torch.bfloat16, got {value}")
    return value  # type: ignore[no-any-return]


def device(name: str, value: Any) -> torch.device:
    """A device that is there. Raises TypeError for what is none, ValueError for one that is not there."""
    try:
        given = instance(name, value, str | int | torch.device, "a device such as 'cpu'")
        if (found := torch.empty(0, device=given).device).type == "meta":
            raise RuntimeError("it holds no numbers")
        return found
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} must be a device that is there, such as 'cpu', got {value!r}: {error}") from None


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
        raise ValueError(f"{', '.join(bad[:5])}{' and more' * (len(bad) > 5)}; {cure}")


# --- calls


def known_keywords(called: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raise TypeError for the first keyword that `called` does not take, with those that come close."""
    if unknown := [name for name in given if name not in known]:
        near = hint(unknown[0], known)
        raise TypeError(f"{called} has no argument {unknown[0]!r}; {near}It takes {', '.join(known)}")


def keywords(called: Callable[P, R]) -> Callable[P, R]:
    """Decorator: an unknown keyword is answered with those that come close."""
    known = [name for name in inspect.signature(called).parameters if name != "self"]

    @functools.wraps(called)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        known_keywords(called.__qualname__.removesuffix(".__init__"), kwargs, known)
        return called(*args, **kwargs)

    return call

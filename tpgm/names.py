"""Parameter names: independent of wrappers, matched by patterns, grouped into blocks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from glob import escape

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# segments that torch's wrappers put into parameter names
_WRAPPER_SEGMENTS = ("_orig_mod", "_checkpoint_wrapped_module")
NORMALIZATIONS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# what can begin HTML, a link, an image, emphasis, code or a formula; between letters "_" and "&" begin nothing
_SPECIAL = re.compile(r"[<>\\`*\[\]$~]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")


def in_markdown(text: str) -> str:
    """A name as it is, in Markdown and in a cell of its tables: nothing of it is taken for markup."""
    safe = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))
    return safe.replace("&#60;", "&lt;").replace("&#62;", "&gt;").replace("|", "\\|")


def in_figure(text: str) -> str:
    """A name as it is, in a figure of matplotlib: no formula, and in legends although it begins with "_"."""
    return f"{' ' * text.startswith('_')}{text}".replace("$", "\\$")


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def canonical(name: str) -> str:
    """The parameter name without the segments that torch's wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_SEGMENTS)


def aliases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every canonical name of every parameter; a shared (tied) parameter stands under each of its names."""
    return {canonical(name): p for name, p in unwrap(model).named_parameters(remove_duplicate=False)}


def anchored(model: nn.Module, anchor: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter that stands in `anchor`, a mapping by canonical name, with its anchor."""
    parameters = aliases(model)
    return [(parameters[name], tensor) for name, tensor in anchor.items() if name in parameters]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether an fnmatch pattern (``head.*``) fits the name, case-sensitively; take patterns from `reading`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def reading(pattern: str, names: Iterable[str]) -> str:
    """The pattern as it is meant among `names`, in fnmatch's language: exact names go before what a sign stands for.

    The first reading that fits a name counts: the whole pattern as a name; its first components as names, as many as
    there are (``a*.w[0].*`` in a module ``a*``, then ``w[0]``); brackets as brackets; then fnmatch's own. So
    ``enc[0].*`` means the module ``enc[0]`` where there is one, and ``enc0`` elsewhere.
    """
    names, parts = list(names), pattern.split(".")
    for k in range(len(parts), -1, -1):
        read = ".".join([*map(escape, parts[:k]), *(part.replace("[", "[[]") for part in parts[k:])])
        if any(fnmatchcase(name, read) for name in names):
            return read
    return pattern


def chosen(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """The names that the patterns fit, as `reading` reads them among these names."""
    names = list(names)
    patterns = [reading(pattern, names) for pattern in patterns]
    return {name for name in names if matches(name, patterns)}


def names_left(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """The name of each parameter that no pattern fits under any of its names, as `reading` reads them."""
    own = aliases(model)
    fitted = {id(own[name]) for name in chosen(own, patterns)}
    return [canonical(name) for name, p in unwrap(model).named_parameters() if id(p) not in fitted]


def require_match(pattern: str, names: Iterable[str], argument: str) -> str:
    """The `reading` of the pattern. Raises ValueError, with names that come close, if it fits none of `names`."""
    names = list(names)
    read = reading(pattern, names)
    if not any(matches(name, [read]) for name in names):
        near = difflib.get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(f"{argument}: pattern {pattern!r} matches no parameter; names look like {', '.join(near)}")
    return read


def blocks(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by block, found from module names: those that agree up to their first number, in their order.

    ``layer1.0.conv1.weight`` and ``layer1.0.bn1.bias`` are in the block ``layer1.0``; ``blocks.3.attn.qkv.weight`` in
    ``blocks.3``; a name without a number is in the block of its first component; the numbered members of a bare
    ``nn.Sequential`` form one block, whose name is empty.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")[:-1]
        first = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        key = ".".join(parts[: first + 1] if first else parts[:1] if first is None else [])
        found.setdefault(key, []).append(name)
    return found


def default_groups(names: Iterable[str]) -> list[list[str]]:
    """The members of each of `blocks`."""
    return list(blocks(names).values())


def kinds(model: nn.Module) -> dict[str, str]:
    """Each parameter's kind by name: "attention", "normalization", "convolution", "linear" or "other"."""
    found: dict[str, str] = {}
    for prefix, module in unwrap(model).named_modules():
        if isinstance(module, NORMALIZATIONS):
            kind = "normalization"
        elif any("attn" in part or "attention" in part for part in prefix.split(".")):
            kind = "attention"
        elif isinstance(module, nn.modules.conv._ConvNd):
            kind = "convolution"
        else:
            kind = "linear" if isinstance(module, nn.Linear) else "other"
        found |= {canonical(f"{prefix}.{name}".lstrip(".")): kind for name, _ in module.named_parameters(recurse=False)}
    return found

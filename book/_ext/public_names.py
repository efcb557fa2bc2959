"""Sphinx extension: links a private module's name to the public one, ``tpgm.optim.ftp.X`` to ``tpgm.optim.X``."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Look for the object under each package above the module that defines it."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("tpgm."):
        return None
    *modules, name = target.split(".")
    python = env.get_domain("py")
    for depth in range(len(modules) - 1, 0, -1):
        public = ".".join([*modules[:depth], name])
        for kind in ("class", "obj"):
            found = python.resolve_xref(env, node["refdoc"], app.builder, kind, public, node, content)
            if found is not None:
                return found
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("missing-reference", resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

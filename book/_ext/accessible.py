"""Sphinx extension: docutils' HTML in forms that screen readers and axe understand, formulas kept to their comma."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

# a long signature's parameters, one a line, come as a definition list without a term
_SIGNATURE = re.compile(r"<dl>\s*((?:<dd>(?:(?!</?d[dl]\b).)*</dd>\s*)+)</dl>", re.DOTALL)

# a formula in a line with the bracket before it and the punctuation after it
_FORMULA = re.compile(r'[(\[“‘]*<span class="math notranslate nohighlight">\\\(.*?\\\)</span>[.,;:!?)\]’”]*', re.DOTALL)


def _lines(found: re.Match[str]) -> str:
    inside = found[1].replace("<dd>", '<div class="sig-line">').replace("</dd>", "</div>")
    return f"<div>\n{inside}</div>"


def accessible(html: str) -> str:
    """The page with signatures as plain lines and bibliography entries as the list items their list announces."""
    return _SIGNATURE.sub(_lines, html).replace('role="doc-biblioentry"', 'role="listitem"')


def _unbroken(found: re.Match[str]) -> str:
    whole = found[0]
    return whole if whole.startswith("<") and whole.endswith(">") else f'<span class="unbroken">{whole}</span>'


def unbroken(html: str) -> str:
    """The page with no line that begins with the comma after a formula or ends with the bracket before one."""
    return _FORMULA.sub(_unbroken, html)


def _change(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if "body" in context:
        context["body"] = unbroken(accessible(context["body"]))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", _change)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

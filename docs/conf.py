"""Settings of Sphinx for the documentation's site, which `make docs` builds of what `python -m bench.site` lays out."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

project = "moebench"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_theme = "pydata_sphinx_theme"
html_title = "moebench"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}
html_math_renderer = "mathml"
html_sidebars = {"index": [], "readme": []}
html_theme_options = {
    "navbar_align": "left",
    "navigation_depth": 2,
    "show_nav_level": 1,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

COMMAND = re.compile(r"\\[A-Za-z]+")
"""What the MathML holds of a command of LaTeX that was not understood."""


def mathml(latex: str, display: str) -> str:
    """Return a formula as MathML, which browsers draw by themselves, without script and font."""
    made = convert(latex, display=display)
    if left := COMMAND.findall(re.sub("<[^>]+>", " ", made)):
        raise ExtensionError(f"the formula {latex!r} has {', '.join(left)}, which latex2mathml does not know")
    return made


def inline_math(self: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block_math(self: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own."""
    self.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def plain_bars(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Keep bars and stars of formulas in docstrings, which reStructuredText would take for its own, and names that end in `_`."""
    for at, line in enumerate(lines):
        parts = re.split(r"(``[^`]+``)", line)
        lines[at] = "".join(part if part.startswith("``") else bars(part) for part in parts)


def bars(text: str) -> str:
    """Return text in which bars, and stars between blanks, mean themselves."""
    return re.sub(r"\|", r"\\|", re.sub(r"(?<= )\*(?= )", r"\\*", text))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what this site adds to Sphinx."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", plain_bars, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

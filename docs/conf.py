"""How Sphinx builds these pages: ``tox run -e docs``."""

from __future__ import annotations

import sys
from pathlib import Path

import idagg

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import tables  # noqa: E402  found by the line above

tables.write(HERE / "generated")

project = "idagg"
version = release = idagg.__version__
project_copyright = ""
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

exclude_patterns = ["_build", "generated"]
# A word in single backquotes would be a reference to anything of that name: always a typing error here.
default_role = None
nitpicky = True
# The library's page is made of its docstrings and types. Types of the standard library have no page here.
extensions = ["sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
nitpick_ignore_regex = [("py:.*", r"(collections|datetime|typing)\..*")]
smartquotes = False  # commands and log lines are quoted in prose, too

html_theme = "furo"
html_title = f"idagg {release}"
html_static_path = ["_static"]
html_css_files = ["idagg.css"]
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

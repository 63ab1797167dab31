"""Settings of the documentation site. `make docs` builds it into build/docs."""

from __future__ import annotations

from importlib.metadata import version as version_of

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "autocl-sweeper"
author = "autocl-sweeper contributors"
version = release = version_of("autocl-sweeper")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3  # for links such as sweeper.md#search-spaces
highlight_language = "none"  # a block without a language is a command, or what one prints

default_role = "code"  # single backticks in docstrings
autodoc_mock_imports = ["lightning", "pytorch_lightning", "transformers"]
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = "autocl-sweeper"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    # Drawing Mermaid takes a script from the network; a code host draws it, the site shows its text.
    app.add_lexer("mermaid", TextLexer)

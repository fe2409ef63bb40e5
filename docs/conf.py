"""How Sphinx makes a site of these pages: `sphinx-build -W --keep-going docs build/docs`.

Links between pages are checked as the site is built, without a network; what code the pages show is run by
tests/test_snippets.py and tests/test_notebooks.py.
"""

from __future__ import annotations

import verydeep

project = "verydeep"
author = "The verydeep authors"
release = version = verydeep.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"verydeep {release}"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_copy_source = html_show_copyright = False

nitpicky = False  # names of other projects' types lead nowhere without a network
default_role = "code"  # docstrings write `name` as Markdown does
myst_heading_anchors = 5  # by GitHub's rule, since the same files are read there
nb_execution_mode = "off"  # tools/notebooks.py --write keeps what notebooks show
nb_merge_streams = True
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False  # those of torch speak of torch
copybutton_exclude = ".linenos, .gp, .go"  # what a session prints is not to be pasted

"""Settings of Sphinx for the website; `website.py` prepares the sources and runs it."""

project = "taskfarm"
author = "the taskfarm developers"
copyright = "the taskfarm developers"  # noqa: A001 - Sphinx's name

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
root_doc = "README"
default_role = "py:obj"  # in docstrings `name` is a link where the name is documented, else code

myst_heading_anchors = 4  # as Git hosts make them
myst_fence_as_directive = ["mermaid"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in the descriptions of the parameters
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "taskfarm"
html_copy_source = False
html_show_sphinx = False

"""The site of the documentation, which `make docs` builds from the pages, the docstrings and the command line.

The pages are plain Markdown: what the site needs besides, such as its contents, is made from them here.
"""

import json
import re
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import ohem

# Modules of which every public name is in the reference, as `ohem.NAME` if `ohem` has it.
PUBLIC = ("ohem", "ohem.integrations", "ohem.samplers", "ohem.losses", "ohem.detection.backbones")

project = "ohem"
author = project_copyright = "The ohem authors"
version = release = ohem.__version__
extensions = [
    "cyclopts.ext.sphinx",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
html_theme = "furo"
html_title = f"ohem {release}"
html_copy_source = False
myst_heading_anchors = 4  # as GitHub makes them

nitpicky = True
# Other packages are not linked: this would need the internet.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|torchvision|numpy|pathlib|collections|typing)\..*"),
    ("py:class", r"ohem\.integrations\.registry\.M"),
    ("py:obj", ".*"),
]
default_role = "py:obj"  # a name in backquotes is a link if the site documents it
smartquotes = False  # they would change --options
autodoc_default_options = {"members": True, "no-value": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
highlight_language = "none"
napoleon_numpy_docstring = False


def setup(app: Sphinx) -> None:
    """Registers what is made from the pages."""
    app.connect("source-read", read_notebook)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-signature", format_signature)
    app.connect("autodoc-process-docstring", separate_shapes)
    app.connect("doctree-read", draw_dashes)
    app.connect("missing-reference", link_public_name)
    app.connect("env-check-consistency", check_reference)


def read_notebook(app: Sphinx, name: str, source: list[str]) -> None:
    """Converts a notebook to Markdown. It is not run: a test does that."""
    path = app.env.doc2path(name)
    if path.suffix != ".ipynb":
        return
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(source[0])["cells"]]
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells]
    title, *rest = parts
    source[0] = "\n\n".join([title, f"This page is the notebook {{download}}`{path.name}`.", *rest])


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Adds the contents of the site to its front page: the pages that are linked below each heading."""
    if name != "index":
        return
    _, *parts = re.split(r"^## (.+)\n", source[0], flags=re.MULTILINE)
    listed: set[str] = set()
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        links = re.findall(r"\[([^]]+)\]\(([\w/-]+)\.(?:md|ipynb)\)", text)
        entries = "\n".join(f"{title} <{page}>" for title, page in links if page not in listed)
        listed.update(page for _, page in links)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n"


def format_signature(
    app: Sphinx, kind: str, name: str, thing: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Removes what Python prints for the constructor of a protocol and for a default that is made on each call."""
    if getattr(thing, "_is_protocol", False):
        return "", None
    return signature and signature.replace("<factory>", "{}"), returned


def separate_shapes(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Separates the shapes at the head of a module, "R: RoIs   N: images", by more than blanks, which HTML drops."""
    lines[:] = [line if line.startswith(" ") else re.sub(r"(?<=\S) {3}(?=\S)", "; ", line) for line in lines]


def draw_dashes(app: Sphinx, document: nodes.document) -> None:
    """Draws the dashes between parameters and their description, without `smartquotes`."""
    for text in list(document.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" \N{EN DASH} "))


def link_public_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement) -> Any:
    """Links a name of `ohem` in the docstrings of other modules."""
    target = node["reftarget"]
    if node["refdomain"] != "py" or target.split(".")[0] not in ohem.__all__:
        return None
    place = node["refdoc"], app.builder, node["reftype"]
    return env.domains.python_domain.resolve_xref(env, *place, f"ohem.{target}", node, text)


def check_reference(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of public names that are missing in the reference."""
    documented = {entry[0] for entry in env.domains.python_domain.get_objects()}
    for module in PUBLIC:
        for name in import_module(module).__all__:
            if not documented & {f"ohem.{name}", f"{module}.{name}"}:
                logging.getLogger(__name__).warning("%s.%s is missing in docs/reference/", module, name)

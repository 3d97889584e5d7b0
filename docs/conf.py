"""How the documentation is built: `python -m sphinx -W -n -b html docs build/docs`."""

import contextlib
import importlib.metadata
import io
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import samo_jax

project = "samo_jax"
author = project_copyright = "The samo_jax authors"
release = importlib.metadata.version("samo_jax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"{project} {release}"
html_extra_path = ["../notebooks"]
smartquotes = False

# `x` in a docstring is code, and a link where x is a public name. Only misspelt full
# names can be told from code.
default_role = "py:obj"
nitpick_ignore_regex = [("py:obj", r"(?s)(?!samo_jax\.\w+$).*")]

autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_attr_annotations = False
napoleon_numpy_docstring = False


class CommandHelp(SphinxDirective):
    """What `python -m samo_jax.experiments` and each of its commands print as help."""

    def run(self) -> list[nodes.Node]:
        """One literal block, then a section for every command."""
        overview = _help()
        commands = re.findall(r"^    (\w+)(?: |$)", overview, re.MULTILINE)
        return [_literal(overview), *map(_section, commands)]


def _help(*command: str) -> str:
    from samo_jax.experiments.__main__ import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return printed.getvalue()


def _literal(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="text")


def _section(command: str) -> nodes.section:
    title = nodes.title(command, command)
    return nodes.section("", title, _literal(_help(command)), ids=[command])


def link_notebooks(app: Sphinx, doctree: nodes.document) -> None:
    """README's links to notebooks, which `html_extra_path` puts beside the page."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        path = Path(link["reftarget"])
        if path.parent.name == "notebooks" and (app.srcdir.parent / path).is_file():
            link.replace_self(nodes.reference("", "", *link.children, refuri=path.name))


def hide_functions(_app, _what, _name, _obj, _options, signature, returns):
    """A default that is a function has no useful name."""
    return re.sub(r"<function .*?>+(?=[,)])", "...", signature or ""), returns


def setup(app: Sphinx) -> None:
    """Register the above."""
    # Classes are at home where they are imported from: no entries of private modules.
    for exported in vars(samo_jax).values():
        if isinstance(exported, type):
            exported.__module__ = "samo_jax"
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-signature", hide_functions)
    app.connect("doctree-read", link_notebooks)

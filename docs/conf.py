"""The documentation site: `make docs` builds it, offline, with warnings as errors."""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import diffode

project, author, release = "diffode", "The diffode developers", diffode.__version__
copyright = "The diffode developers, Apache-2.0"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "index"
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme, html_title = "furo", "diffode"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_show_sourcelink = False

# Pages are read on a code host too: links are plain Markdown, to files and to headings.
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = True
# Programs and tables beside the pages are downloads.
# Attributes of several classes have the same name, and a docstring that names one means its own.
suppress_warnings = ["myst.header", "ref.python"]

# Tutorials are executed with every build: a cache would not see that the package changed.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def inline_formula(writer, node: nodes.math) -> None:
    """A formula in a line, as MathML, which browsers draw without a script from elsewhere."""
    _formula(writer, node.astext(), block=False)


def formula(writer, node: nodes.math_block) -> None:
    """A formula by itself."""
    _formula(writer, node.astext(), block=True)


def _formula(writer, text: str, *, block: bool) -> None:
    try:
        shown = "".join(tex2mathml(text, as_block=block))
    except MathError as error:
        raise ValueError(f"the formula {text!r} can't be shown: {error}") from error
    writer.body.append(f'<div class="formula">{shown}</div>' if block else shown)
    raise nodes.SkipNode


#: What is code or a formula in a docstring, which is left alone.
CODE = re.compile(r"(``.*?``|:\w+:`.*?`|`.*?`)")


def plain_signs(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are read in terminals: their (B, *shape) and |x| are no markup."""
    formula = False
    for i, line in enumerate(lines):
        if line.strip().startswith(".. math::"):
            formula = True
        elif line.strip() and not line.startswith(" "):
            formula = False
        if formula or line.lstrip().startswith((">>>", "...")):
            continue
        parts = CODE.split(line)
        for k in range(0, len(parts), 2):
            parts[k] = re.sub(r"(?<![\\*\w])\*(?=[a-z])", r"\\*", parts[k].replace("|", "\\|"))
        lines[i] = "".join(parts)


def foreign(app, what, name, obj, skip: bool, options) -> bool | None:
    """Functions of PyTorch that are attributes here, and methods of a registry, have no pages of their own."""
    return True if type(obj).__name__ == "builtin_function_or_method" or name == "register" else None


def setup(app: Sphinx) -> None:
    """Formulas become MathML, docstrings what they say."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    # After Napoleon, whose priority is 500.
    app.connect("autodoc-process-docstring", plain_signs, priority=600)
    app.connect("autodoc-skip-member", foreign)


html_math_renderer = "mathml"

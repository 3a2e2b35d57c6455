"""Docstrings for a terminal: the mark-up of Sphinx and of LaTeX turned into plain text."""

from __future__ import annotations

import re

#: LaTeX commands and the plain text for them.
_PLAIN = {
    "alpha": "alpha", "beta": "beta", "sigma": "sigma", "rho": "rho", "eta": "eta", "theta": "theta", "tau": "tau",
    "lambda": "lambda", "gamma": "gamma", "varepsilon": "eps", "epsilon": "eps", "phi": "phi", "Phi": "Phi", "mu": "mu",
    "pi": "pi", "det": "det", "log": "log", "exp": "exp", "sum": "sum", "int": "int", "sqrt": "sqrt", "cdot": "*",
    "times": "x", "partial": "d", "nabla": "grad", "le": "<=", "ge": ">=", "to": "->", "downarrow": "down", "uparrow": "up",
}  # fmt: skip


def plain_text(text: str) -> str:
    """The text without roles, double backquotes and LaTeX.

    >>> plain_text(r"Euler for :math:`\\eta g\\,dw`, see :func:`gaussian_split` and ``eta``.")
    'Euler for eta g dw, see gaussian_split and eta.'
    >>> plain_text(r":math:`\\rho\\epsilon = \\sqrt{2\\epsilon}\\,\\mathrm{snr}\\,x_{j+1}`")
    'rho eps = sqrt(2 eps) snr x_(j+1)'
    """
    text = re.sub(r":math:`([^`]*)`", lambda found: _formula(found[1]), text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]*)`", r"\1", text)
    return re.sub(r"``([^`]*)``|`([^`<]*?)(?:\s*<[^>]*>)?`_?", lambda found: found[1] or found[2] or "", text)


def _formula(text: str) -> str:
    text = re.sub(r"\\(?:mathrm|mathbf|text|operatorname)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"([_^])\{([^{}]{2,})\}", lambda found: f"{found[1]}{_held(found[2])}", text)
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"\\sqrt(\1)", text)
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)", text)
    text = re.sub(r"\\[,;!: ]", " ", text)
    # Words of their own, where commands stand side by side or behind a letter.
    text = re.sub(r"(?<=[A-Za-z0-9])(?=\\[A-Za-z])", " ", text)
    text = re.sub(r"(\\[A-Za-z]+)(?=[A-Za-z0-9\\])(?![A-Za-z])", r"\1 ", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda found: _PLAIN.get(found[1], found[1]), text)
    return re.sub(r"[{}]", "", text)


def _held(text: str) -> str:
    """An index or a power: in brackets, unless it is a word or a number."""
    return text if re.fullmatch(r"\w+", text) else f"({text})"

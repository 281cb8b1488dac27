"""Docstrings of functions say what these do: the first word is a verb (ruff's D401 knows most)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_VERBS = frozenset(
    [
        "A",
        "All",
        "An",
        "As",
        "Both",
        "Bytes",
        "Every",
        "Exactly",
        "How",
        "If",
        "Is",
        "It",
        "Its",
        "None",
        "No",
        "One",
        "See",
        "So",
        "Some",
        "That",
        "The",
        "These",
        "This",
        "Those",
        "What",
        "When",
        "Where",
        "Whether",
        "Which",
        "Who",
    ]
)
REWRITTEN = ("serve/service",)
"""Folders whose docstrings come with the rewriting of their code."""
ONE_STYLE = ["blob", "codec", "content", "http", "kbs", "opening", "registry", "source", "store"]
"""Folders whose docstrings say it in one way."""


def test_functions_begin_with_a_verb() -> None:
    wrong = []
    count = 0
    for path in sorted((ROOT / "src/lamina").rglob("*.py")):
        if str(path.relative_to(ROOT / "src/lamina")).startswith(REWRITTEN):
            continue
        for function in functions(ast.parse(path.read_text())):
            text = ast.get_docstring(function) or ""
            count += 1
            if text.split(" ", 1)[0].rstrip(".,:;") in NOT_VERBS:
                wrong.append(f"{path.relative_to(ROOT)}:{function.lineno}: {text.splitlines()[0]}")
    assert count > 1000, "the walk finds what it is to look at"
    assert not wrong, "\n".join(wrong)


def test_one_way_to_say_what_is_raised_and_what_is_an_argument() -> None:
    """A sentence that begins with ``Raises``, no section; arguments in asterisks, all else that is
    code in backquotes.
    """
    wrong = []
    paths = [path for folder in ONE_STYLE for path in (ROOT / "src/lamina" / folder).rglob("*.py")]
    assert len(paths) > 100, "the walk finds what it is to look at"
    for path in sorted(paths):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                found = re.findall(r"(?m)^ *(?:Raises|Args|Arguments|Returns|Yields):$", text)
                if isinstance(node, ast.FunctionDef):
                    found += [f"``{name}``" for name in arguments(node) if f"``{name}``" in text]
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {each}" for each in found]
    assert not wrong, "\n".join(wrong)


def arguments(function: ast.FunctionDef) -> list[str]:
    of = function.args
    named = [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]
    return [each.arg for each in named]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods; properties are named by what they are, and magic methods known."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            marks = " ".join(map(ast.unparse, node.decorator_list))
            if "property" not in marks and ".setter" not in marks:
                yield node

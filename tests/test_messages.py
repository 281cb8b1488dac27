"""Errors speak in one style: one sentence, which begins in lower case and ends without a full stop;
hints the same.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = frozenset(("Docker", "Lamina", "Linux", "Nydus", "Python"))
"""What is written with a capital wherever it stands, besides words with more than one of them."""


def test_messages_and_hints_have_one_style() -> None:
    wrong: list[str] = []
    count = 0
    for path in sorted((ROOT / "src").rglob("*.py")):
        for kind, node in spoken(ast.parse(path.read_text())):
            text = shown(node)
            count += 1
            if fault := fault_of(text):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {kind} {fault}: {text!r}")
    assert count > 800, "the walk finds what it is to look at"
    assert not wrong, "\n".join(wrong)


def test_the_style_is_told_apart() -> None:
    assert fault_of("The layer is damaged") == "begins with a capital"
    assert fault_of("A layer is damaged") == "begins with a capital"
    assert fault_of("the layer is damaged.") == "ends with a full stop"
    assert fault_of("the layer is damaged. Fetch it again") == "is two sentences"
    for good in ("OCI layouts have no such file", "Lamina 1 …", "{}: read it ...", "EROFS image"):
        assert fault_of(good) is None


def fault_of(text: str) -> str | None:
    word = re.match(r"[A-Za-z]+", text)
    if word and re.fullmatch(r"[A-Z][a-z]*", word[0]) and word[0] not in NAMES:
        return "begins with a capital"
    if text.endswith(".") and not text.endswith("..."):
        return "ends with a full stop"
    if re.search(r"[a-z)}][.!?] +[A-Z]", text):
        return "is two sentences"
    return None


def spoken(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The texts of errors that are made, and of hints, as far as they stand in the code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name.endswith("Error") and node.args:
                yield from ((f"{name}", each) for each in texts_in(node.args[0]))
            for keyword in node.keywords:
                if keyword.arg == "hint":
                    yield from (("hint", each) for each in texts_in(keyword.value))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if "hint" in getattr(target, "id", getattr(target, "attr", "")).lower():
                yield from (("hint", each) for each in texts_in(node.value))


def texts_in(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.IfExp):
        yield from texts_in(node.body)
        yield from texts_in(node.orelse)
    elif isinstance(node, ast.BoolOp | ast.Dict):
        for each in node.values:
            yield from texts_in(each)
    elif isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    ):
        yield node


def shown(node: ast.expr) -> str:
    """The text with ``{}`` for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr)
    return "".join(str(e.value) if isinstance(e, ast.Constant) else "{}" for e in node.values)

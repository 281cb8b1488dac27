"""What is behind a seam is not asked what it is, and is not reached through."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src/lamina"
SEALED_OFF = {
    "BlobFiller",
    "BlobSet",
    "ChunkTable",
    "Fetcher",
    "FolderSource",
    "LazyBlob",
    "LazyImage",
    "RepositorySource",
    "SealedTable",
    "SequentialFiller",
    "SplitTable",
}
"""Classes behind a protocol or a base class, which is to have what their users need."""
INSIDE = ("cache", "source", "fetcher")
"""What a blob is made of: the business of ``content/``."""


def test_nobody_asks_which_class_is_behind_a_seam() -> None:
    wrong = []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                if names & SEALED_OFF:
                    wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_nobody_reaches_through_a_blob() -> None:
    wrong = []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in INSIDE:
                whose = ast.unparse(node.value)
                if whose.split("[")[0].endswith(("blob", "blobs")) and path.parts[0] != "content":
                    wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_devices_know_blobs_by_what_they_serve() -> None:
    """The class with caches, tables and sources in it is none of their business."""
    wrong = []
    for path, tree in sources():
        if path.parts[0] in ("serve", "block"):
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module == "lamina.content.lazy_blob":
                    wrong.append(f"{path}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def sources() -> list[tuple[Path, ast.Module]]:
    found = sorted(SOURCE.rglob("*.py"))
    assert len(found) > 300, "the walk finds what it is to look at"
    return [(path.relative_to(SOURCE), ast.parse(path.read_text())) for path in found]

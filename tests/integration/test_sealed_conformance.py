"""Pages that name tests name tests that exist, and that can fail."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/\S+\.py)::(test_\w+)`")
CONFORMANCE = "docs/reference/conformance.md"
TIERS = "## Tiers of tests"
"""From here on the page tells of runs by hand, not of single tests."""


@cache
def functions(path: str) -> dict[str, ast.FunctionDef]:
    """The test functions of a module, and the helpers beside them."""
    module = ast.parse((ROOT / path).read_text())
    return {node.name: node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}


def can_fail(path: str, name: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a function, or a helper of the same module that it calls, claims anything."""
    found = functions(path).get(name)
    if found is None or name in seen:
        return False
    called = set()
    for node in ast.walk(found):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Attribute) and node.attr == "raises":
            return True
        if isinstance(node, ast.Name):
            called.add(node.id)
    return any(can_fail(path, each, seen | {name}) for each in called - {name})


def rows(text: str) -> list[str]:
    """The rows of all tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {number - 1 for number, line in enumerate(lines) if line.startswith("|---")}
    return [
        line
        for number, line in enumerate(lines)
        if number not in heads and not line.startswith("|---")
    ]


def test_every_row_of_the_conformance_page_names_tests_that_can_fail() -> None:
    found = rows((ROOT / CONFORMANCE).read_text().partition(TIERS)[0])
    assert len(found) >= 50
    for row in found:
        named = NAMED.findall(row)
        assert named, row
        assert row.count("::") == len(named), row
        for path, name in named:
            assert can_fail(path, name), f"{path}::{name}"


def test_the_tiers_are_targets_with_a_limit() -> None:
    tiers = (ROOT / CONFORMANCE).read_text().partition(TIERS)[2].partition("\n## ")[0]
    recipes = dict(
        re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    named = re.findall(r"^\| `make ([a-z-]+)`", tiers, re.MULTILINE)
    assert {"test", "test-peers", "test-guest", "faults", "fuzz", "mutants"} <= set(named)
    for target in named:
        bounded = ("$(LIMIT)", "--seconds", "scripts/test-fresh")
        assert any(word in recipes[target] for word in bounded), target


def test_every_row_of_the_threat_table_names_tests_that_can_fail() -> None:
    own = "tests/integration/test_sealed.py"
    table = (ROOT / "SECURITY.md").read_text().partition("## Sealed images")[2]
    found = rows(table)
    assert len(found) >= 20
    for row in found:
        cell = row.rsplit("|", 2)[1]
        files = [*re.findall(r"`(tests/\S+\.py)`", cell), own]
        tests = re.findall(r"`(test_\w+)`", cell)
        assert tests, row
        for name in tests:
            assert any(can_fail(path, name) for path in files), name


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("assert x", True),
        ("with pytest.raises(ValueError):\n        x()", True),
        ("helper()", True),
        ("print('fine')", False),
        ("harmless()", False),
        ("test_it()", False),
    ],
)
def test_what_can_fail(
    body: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the two above can fail themselves."""
    helpers = "def helper():\n    assert x\n\ndef harmless():\n    print(1)\n"
    (tmp_path / "m.py").write_text(f"{helpers}\ndef test_it():\n    {body}\n")
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    functions.cache_clear()
    try:
        assert can_fail("m.py", "test_it") == expected
        assert not can_fail("m.py", "test_absent")
    finally:
        functions.cache_clear()

"""The linters are tests: what ``make lint`` runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("lint-imports",)],
    ids=lambda command: "-".join(command).rstrip("-."),
)
def test_linter(command: tuple[str, ...]) -> None:
    program = BIN / command[0]
    if not program.exists():
        pytest.skip(f"{command[0]} is not installed in this environment (pip install -e .[dev])")
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_modules_stay_small() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in sorted((ROOT / "src").rglob("*.py"))
        if (lines := path.read_text().count("\n")) > 400
    ]
    assert not long, "\n".join(long)


def test_the_table_of_the_house_is_the_contract() -> None:
    """The page for readers, the map for contributors and the rule for imports are one table."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    rows = next(each["layers"] for each in contracts["contracts"] if each["type"] == "layers")
    layers = [re.findall(r"lamina\.(\w+)", row) for row in reversed(rows)]

    page = (ROOT / "docs/explanation/architecture.md").read_text()
    table = page[page.index("| folder |") : page.index("Seams between")]
    cells = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    assert [re.findall(r"`(\w+)/?`", cell) for cell in cells] == layers

    chart = (ROOT / "CONTRIBUTING.md").read_text()
    chart = chart[chart.index("from the bottom:") : chart.index("A folder imports only")]
    assert [re.findall(r"`(\w+)`", part) for part in chart.split("·")] == layers

    folders = {
        path.name.removesuffix(".py")
        for path in (ROOT / "src/lamina").iterdir()
        if not path.name.startswith("_") and path.suffix in ("", ".py")
    }
    assert folders == {name for row in layers for name in row}


def test_what_the_page_of_the_house_names_is_there() -> None:
    """A newcomer finds by it, in one step, the module that is to be changed."""
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    table = page[page.index("## Where to find what") : page.index("## Words")]
    named = re.findall(r"`([a-z_]+(?:/[a-z_]*)*(?:[.]py)?)`", table)
    assert len(named) > 30, "the table is read"
    assert not [name for name in named if not (ROOT / "src/lamina" / name).exists()]

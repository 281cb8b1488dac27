"""The command line reference in the documentation is the one that the parsers make."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.cli import reference
from lamina.cli.dispatch import verb_parser
from lamina.cli.exit_codes import exit_codes
from lamina.cli.verbs import VERBS

FILE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"


def test_the_reference_is_up_to_date() -> None:
    assert reference.main(["--check", str(FILE)]) == 0, (
        "run python -m lamina.cli.reference docs/reference/cli.md"
    )


def test_it_names_every_option_and_exit_code() -> None:
    text = reference.reference()
    for verb in VERBS:
        assert f"\n## lamina {verb.name}\n" in text
        for action in verb_parser(verb)._actions:
            for name in action.option_strings:
                assert name in text
    for code in exit_codes():
        assert f"\n| {code.code} | " in text


def test_check_tells_a_stale_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "docs" / "cli.md"
    assert reference.main(["--check", str(path)]) == 1
    assert "out of date" in capsys.readouterr().err
    assert reference.main([str(path)]) == 0
    assert reference.main(["--check", str(path)]) == 0
    path.write_text(path.read_text() + "more\n")
    assert reference.main(["--check", str(path)]) == 1


def test_tables_have_no_broken_cells() -> None:
    import re

    rows = [line for line in reference.reference().splitlines() if line.startswith("|")]
    header = 0
    for line in rows:
        columns = len(re.findall(r"(?<!\\)\|", line)) - 1
        if set(line) <= set("|-"):
            header = columns
        elif header and columns not in (2, 3):
            pytest.fail(line)

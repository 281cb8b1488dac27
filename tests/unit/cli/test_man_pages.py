"""The manual says what ``--help`` says, and its markup is what mandoc and groff read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.tools import require_tool

from lamina.cli import man_pages
from lamina.cli.dispatch import verb_parser
from lamina.cli.exit_codes import exit_codes
from lamina.cli.help_text import page_sections
from lamina.cli.verbs import VERBS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, made as a build makes them: without any third-party package."""
    folder = tmp_path_factory.mktemp("man")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-S", "-m", "lamina.cli.man_pages", folder]
    subprocess.run(command, check=True, env=environment, cwd="/")
    return folder


def test_a_page_for_the_program_and_each_verb(folder: Path) -> None:
    wanted = {"lamina.1", *(f"lamina-{verb.name}.1" for verb in VERBS)}
    assert {path.name for path in folder.iterdir()} == wanted


def plain(text: str) -> str:
    """The words of a page, without its markup and where its lines are broken."""
    text = re.sub(r"\\f[BIR]|\\&", "", text)
    for escape, char in (("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\(ti", "~")):
        text = text.replace(escape, char)
    return " ".join(text.replace("\\(ha", "^").replace("\\e", "\\").split())


def words(text: str) -> str:
    return " ".join(text.replace("`", "").replace("…", "...").split())


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_nothing_of_the_help_is_missing(folder: Path, verb: man_pages.Verb) -> None:
    text = plain((folder / f"lamina-{verb.name}.1").read_text())
    parser = verb_parser(verb)
    assert words(verb.summary) in text and words(parser.page.description) in text.replace(
        " .PP ", " "
    )
    for section in page_sections(parser.page, parser):
        for row in section.rows:
            assert words(row.spelling) in text and words(row.meaning) in text
        for command, meaning in section.examples:
            assert " ".join(command.split()) in text and words(meaning) in text


def test_the_first_page_names_all_verbs_and_exit_codes(folder: Path) -> None:
    text = plain((folder / "lamina.1").read_text())
    for verb in VERBS:
        assert f".BR lamina-{verb.name} (1) {words(verb.summary)}" in text
    for code in exit_codes():
        assert f".TP {code.code} {words(code.meaning)}" in text


def test_the_same_day_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    pages = man_pages.man_pages()
    assert '1 "2023-11-14"' in pages["lamina.1"]
    assert pages == man_pages.man_pages()


@pytest.mark.tools
def test_mandoc_has_nothing_to_say(folder: Path) -> None:
    require_tool("mandoc")
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *sorted(folder.iterdir())],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.tools
@pytest.mark.parametrize("device", ["utf8", "ascii"])
def test_groff_has_nothing_to_say(folder: Path, device: str) -> None:
    require_tool("groff")
    for path in sorted(folder.iterdir()):
        done = subprocess.run(
            ["groff", "-man", "-ww", f"-T{device}", path], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), path.name
        assert "\\f" not in done.stdout


@pytest.mark.tools
def test_what_is_typed_can_be_copied_from_the_page(folder: Path) -> None:
    """Hyphens of options are not made typographical ones."""
    require_tool("groff")
    assert shutil.which("col")
    page = subprocess.run(
        ["groff", "-man", "-Tutf8", "-P-c", folder / "lamina-convert.1"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "--chunk-size" in re.sub(r".\x08", "", page)


def test_lines_that_begin_with_a_full_stop_are_text() -> None:
    assert list(man_pages._text("./file is a path")) == ["\\&./file is a path"]
    assert list(man_pages._text("'a' \\n `--x y`")) == ["\\(aqa\\(aq \\en \\fB\\-\\-x y\\fR"]

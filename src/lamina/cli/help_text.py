"""Help pages: the words of a verb and the facts of its parser, rendered for a terminal or as
Markdown.

argparse words its help differently from one Python version to the next; these pages do not, so the
reference that is generated from them is the same everywhere.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

INDENT: Final = "    "
MAX_WIDTH: Final = 96


class HelpPage(NamedTuple):
    """What the help of a verb says beyond its options.

    ``examples`` are (command, what it does); ``json_keys`` are (key, meaning) of what ``--json``
    prints; ``exit_codes`` are the meanings that differ from the common table; ``see_also`` are
    names of verbs; ``failure_code`` replaces the exit codes of errors for a verb whose exit code is
    that of another program.
    """

    description: str
    examples: tuple[tuple[str, str], ...] = ()
    json_note: str = ""
    json_keys: tuple[tuple[str, str], ...] = ()
    exit_codes: tuple[tuple[str, str], ...] = ()
    exit_note: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    see_also: tuple[str, ...] = ()
    failure_code: int | None = None


class Row(NamedTuple):
    """One option or argument: how it is written and what it means."""

    spelling: str
    meaning: str


class Section(NamedTuple):
    """A titled part of a page: paragraphs, then rows, of which each is a term and its meaning."""

    title: str
    paragraphs: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()


def positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Arguments without a dash, in order."""
    return [action for action in parser._actions if not action.option_strings]


def argument_name(action: argparse.Action) -> str:
    """Return the metavar, or what argparse would make of the name."""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    return action.dest.upper() if action.option_strings else action.dest


def synopsis(parser: argparse.ArgumentParser) -> str:
    """Return the command with its arguments; options are one word."""
    words = [parser.prog, "[OPTIONS]"]
    for action in positionals(parser):
        name = argument_name(action)
        forms = {
            "?": f"[{name}]",
            "*": f"[{name}…]",
            "+": f"{name}…",
            argparse.REMAINDER: f"[{name}…]",
        }
        words.append(forms.get(str(action.nargs), name))
    return " ".join(words)


def option_spelling(action: argparse.Action) -> str:
    """``-o, --output FILE``"""
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    return f"{names} {argument_name(action)}"


def option_sections(parser: argparse.ArgumentParser) -> Iterator[Section]:
    """Yield the arguments, the verb's own options, then the groups."""
    for group in parser._action_groups:
        rows = tuple(
            Row(
                option_spelling(action) if action.option_strings else argument_name(action),
                _help_of(action),
            )
            for action in group._group_actions
            if action.help != argparse.SUPPRESS
        )
        if rows:
            title = {"positional arguments": "Arguments", "options": "Options"}.get(
                group.title or "", group.title or ""
            )
            yield Section(title, rows=rows)


def page_sections(page: HelpPage, parser: argparse.ArgumentParser) -> Iterator[Section]:
    """Yield all sections of a page after its description, in reading order."""
    yield from option_sections(parser)
    if page.json_keys or page.json_note:
        rows = tuple(Row(*pair) for pair in page.json_keys)
        yield Section("Output of --json", paragraphs(page.json_note), rows)
    if page.examples:
        yield Section("Examples", examples=page.examples)
    if page.exit_codes or page.exit_note:
        yield Section(
            "Exit codes", paragraphs(page.exit_note), tuple(Row(*pair) for pair in page.exit_codes)
        )
    if page.environment:
        yield Section("Environment", rows=tuple(Row(*pair) for pair in page.environment))
    if page.see_also:
        yield Section("See also", (", ".join(f"lamina {name}" for name in page.see_also),))


def paragraphs(text: str) -> tuple[str, ...]:
    """Text cut at its empty lines, each paragraph on one line."""
    return tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def render_text(head: str, lines: Sequence[str], body: Iterable[Section], width: int) -> str:
    """Return a page for the terminal: usage line, paragraphs, sections."""
    width = min(width, MAX_WIDTH)
    out = [head, ""]
    for paragraph in lines:
        out += [*textwrap.wrap(paragraph, width), ""]
    for section in body:
        out += [f"{section.title}:", *_section_text(section, width), ""]
    return "\n".join(out)


def _section_text(section: Section, width: int) -> Iterator[str]:
    for paragraph in section.paragraphs:
        yield from textwrap.wrap(paragraph, width, initial_indent="  ", subsequent_indent="  ")
    column = min(max((len(row.spelling) for row in section.rows), default=0), 28) + 4
    for spelling, meaning in section.rows:
        lines = textwrap.wrap(meaning, max(width - column, 24)) or [""]
        if len(spelling) > column - 4:
            yield f"  {spelling}"
        else:
            yield f"  {spelling}".ljust(column) + lines.pop(0)
        yield from (" " * column + line for line in lines)
    for command, meaning in section.examples:
        yield f"  $ {command}"
        yield from textwrap.wrap(meaning, width, initial_indent=INDENT, subsequent_indent=INDENT)


def render_markdown(body: Iterable[Section], level: int) -> Iterator[str]:
    """Yield the sections as Markdown lines under headings of the given level."""
    for section in body:
        yield f"{'#' * level} {section.title}"
        yield ""
        for paragraph in section.paragraphs:
            yield from (_markdown_text(paragraph), "")
        if section.rows:
            yield from ("| | |", "|---|---|")
            for spelling, meaning in section.rows:
                yield f"| `{_cell_code(spelling)}` | {markdown_cell(meaning)} |"
            yield ""
        for command, meaning in section.examples:
            yield from (f"{_markdown_text(meaning)}", "", "```console", f"$ {command}", "```", "")


def _cell_code(text: str) -> str:
    return text.replace("|", "\\|")


def markdown_cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return _markdown_text(text).replace("|", "\\|")


def _markdown_text(text: str) -> str:
    return text.replace("<", "&lt;")


def _help_of(action: argparse.Action) -> str:
    text = action.help or ""
    default = "" if action.default is None else str(action.default)
    return text.replace("%(default)s", default).replace("%%", "%")

"""What can be typed after ``lamina``, read off the parsers of all verbs."""

from __future__ import annotations

import argparse
from typing import Final, NamedTuple

from lamina.cli.dispatch import top_parser, verb_parser
from lamina.cli.help_text import argument_name, positionals
from lamina.cli.verbs import VERBS

TRANSPORTS: Final = ("docker://", "oci:", "oci-archive:", "docker-archive:")

_KINDS: Final = {
    "FILE": "file",
    "DIR": "folder",
    "IMAGE": "image",
    "SRC": "image",
    "DST": "image",
    "A": "image",
    "B": "image",
    "MOUNTPOINT": "mountpoint",
    "CONTAINER": "container",
    "SRC:DST[:OPTIONS]": "file",
    "VERB": "verb",
}


class Option(NamedTuple):
    """An option: its spellings, its help, and what its value may be (``kind`` "" takes none)."""

    names: tuple[str, ...]
    help: str
    kind: str
    choices: tuple[str, ...]


class Argument(NamedTuple):
    """An argument by position; ``many`` if all further ones are of its kind."""

    name: str
    kind: str
    choices: tuple[str, ...]
    many: bool


class VerbModel(NamedTuple):
    """A verb with its options and arguments."""

    name: str
    summary: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]


def verb_models() -> list[VerbModel]:
    """Return the words of every verb, in the order of the table."""
    return [_words(verb.name, verb.summary, verb_parser(verb)) for verb in VERBS]


def top_options() -> tuple[Option, ...]:
    """Return the options before the verb."""
    return _words("", "", top_parser()).options


def _words(name: str, summary: str, parser: argparse.ArgumentParser) -> VerbModel:
    options = tuple(
        Option(
            tuple(action.option_strings),
            first_clause(action.help or ""),
            "" if action.nargs == 0 else _kind(action),
            _choices(action),
        )
        for action in parser._actions
        if action.option_strings and action.help != argparse.SUPPRESS
    )
    arguments = tuple(
        Argument(
            argument_name(action),
            _kind(action),
            _choices(action),
            str(action.nargs) in ("*", "+", argparse.REMAINDER),
        )
        for action in positionals(parser)
    )
    return VerbModel(name, summary, options, arguments)


def _kind(action: argparse.Action) -> str:
    if action.choices is not None:
        return "choice"
    if action.nargs == argparse.REMAINDER:
        return "any"
    return _KINDS.get(argument_name(action), "any")


def _choices(action: argparse.Action) -> tuple[str, ...]:
    return tuple(str(choice) for choice in action.choices or ())


def first_clause(text: str) -> str:
    """Return the start of a help text, for the narrow column of a menu."""
    text = text.replace("%(default)s", "").replace("%%", "%")
    for mark in (";", " (", ": ", ","):
        text = text.partition(mark)[0]
    return text.strip()

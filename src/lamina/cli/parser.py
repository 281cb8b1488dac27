"""The argument parser of a verb: argparse, with our errors, our help pages and docker's rule for
commands.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NoReturn

from lamina.cli.help_text import (
    HelpPage,
    argument_name,
    page_sections,
    paragraphs,
    positionals,
    render_text,
    synopsis,
)
from lamina.cli.output import print_text
from lamina.errors import UnsupportedError, UsageError

NO_VALUE: Final = (0,)
REFUSED_EVERYWHERE: Final = {
    "--tls-verify": "--no-tls-verify",
    "--src-tls-verify": "--no-tls-verify",
    "--dest-tls-verify": "--no-tls-verify",
    "--format": "--json prints objects, and jq picks from them",
}
"""Options of skopeo and docker that several verbs have there, and what to use instead."""


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError and shows a Page as its help."""

    def __init__(self, prog: str, summary: str, page: HelpPage) -> None:
        # Pages have a form of their own; argparse's would ask for the terminal at every argument.
        form = partial(argparse.HelpFormatter, width=96)
        super().__init__(prog=prog, allow_abbrev=False, add_help=False, formatter_class=form)
        self.summary = summary
        self.page = page
        self._synopsis: str | None = None
        self.refused: Mapping[str, str] = REFUSED_EVERYWHERE
        """Options of docker that there are not, and what to use instead."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing the usage and leaving the process."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and unknown.startswith("-"):
            word = unknown.split()[0].partition("=")[0]
            import difflib

            near = difflib.get_close_matches(word, self.option_names, 1)
            more = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"{self.prog} has no option {word}", hint=f"{more}`{self.prog} --help` lists them"
            )
        raise UsageError(message, hint=f"usage: {self.usage_line}; `{self.prog} --help` explains")

    def format_help(self) -> str:
        """Return the whole page for a terminal."""
        lines = (
            f"{self.summary[0].upper()}{self.summary[1:]}.",
            *paragraphs(self.page.description),
        )
        body = page_sections(self.page, self)
        return render_text(f"Usage: {self.usage_line}", lines, body, terminal_width())

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002
        """Print the help page; argparse's own hides that it could not be written."""
        print_text(message)

    @property
    def usage_line(self) -> str:
        """The command with its arguments."""
        return self._synopsis or synopsis(self)

    @property
    def option_names(self) -> set[str]:
        """All spellings of all options."""
        return set(self._option_string_actions)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments of the verb.  Raises UsageError; leaves the process after ``--help``.

        A verb that ends in a command follows docker's rule: what comes after the first argument
        that is not an option belongs to the command, whatever it looks like.  Elsewhere options and
        arguments mix freely.
        """
        # argparse hides the arguments while it looks for options among them.
        self._synopsis = self.usage = synopsis(self)
        for item in positionals(self):
            # For its message about what is missing: the name that the synopsis has.
            item.metavar = argument_name(item)
            item.required = item.required and item.nargs != argparse.REMAINDER
        tail = next((item for item in positionals(self) if item.nargs == argparse.REMAINDER), None)
        if tail is None:
            self._refuse(arguments)
            return self.parse_intermixed_args(list(arguments))
        options, words, rest = self._before_command(arguments)
        self._refuse(options)
        leading = [word for given in options for word in self._without_truth(given)]
        args = self.parse_args([*leading, *words])
        setattr(args, tail.dest, rest)
        return args

    def _before_command(self, arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
        """Return the options and the arguments before the words of a command, and these."""
        options: list[str] = []
        words: list[str] = []
        rest = list(arguments)
        for _ in positionals(self)[:-1]:
            cut = count_leading_options(self, rest)
            options += rest[:cut]
            if rest[cut : cut + 1] == ["--"]:
                cut += 1
            words += rest[cut : cut + 1]
            rest = rest[cut + 1 :]
        return options, words, rest

    def _refuse(self, words: Sequence[str]) -> None:
        """Raise UnsupportedError for an option of docker that there is not."""
        index = 0
        while index < len(words):
            word = words[index]
            index += 2 if _wants_next(self, word) else 1
            for name in _spellings(self, word):
                if name in self.refused and name not in self.option_names:
                    raise UnsupportedError(
                        f"{self.prog} has no option {name}", hint=self.refused[name]
                    )

    def _without_truth(self, word: str) -> list[str]:
        """``--rm=true`` as ``--rm``, and ``--rm=false`` as nothing, as Go's programs have it."""
        name, equals, value = word.partition("=")
        action = self._option_string_actions.get(name)
        if not equals or action is None or action.nargs not in NO_VALUE:
            return [word]
        return {"true": [name], "1": [name], "false": [], "0": []}.get(value.lower(), [word])


def _spellings(parser: argparse.ArgumentParser, word: str) -> Iterator[str]:
    """Yield the options that a word is: one, or letters up to the first that has a value."""
    if word.startswith("--"):
        yield word.partition("=")[0]
        return
    for letter in word[1:]:
        yield f"-{letter}"
        action = parser._option_string_actions.get(f"-{letter}")
        if action is None or action.nargs not in NO_VALUE:
            return


def terminal_width() -> int:
    """Columns of the terminal on stdout, else 96."""
    try:
        return max(os.get_terminal_size(1).columns - 1, 40)
    except OSError:
        return 96


def count_leading_options(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Return how many arguments come before the first that is neither an option of the parser nor
    an option's value.
    """
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--" or not word.startswith("-") or word == "-":
            break
        index += 2 if _wants_next(parser, word) else 1
    return min(index, len(arguments))


def _wants_next(parser: argparse.ArgumentParser, word: str) -> bool:
    """Tell whether the value of this option word is the next word."""
    options = parser._option_string_actions
    if word.startswith("--"):
        action = options.get(word)
        return action is not None and action.nargs not in NO_VALUE
    for position, letter in enumerate(word[1:], 2):
        action = options.get(f"-{letter}")
        if action is None:
            return False
        if action.nargs not in NO_VALUE:
            return position == len(word)
    return False

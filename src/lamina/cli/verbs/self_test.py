"""``lamina self-test``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import add_output_options
from lamina.cli.output import print_json, print_line, print_table
from lamina.cli.parser import Parser

HELP: Final = HelpPage(
    """
    Checks that this installation computes what it must: digests, checksums and codecs against
    known answers, and a small image that is made, converted, opened and read back; a damaged one
    must be refused. Then reports which features of kernel and machine are there. A missing
    feature is no failure: it only tells which devices and verbs will work.
    """,
    examples=(
        ("lamina self-test", "After an installation, or before a bug report."),
        ("lamina self-test --json | jq .features", "What this machine can do."),
    ),
    json_keys=(
        ("ok", "whether all answers were right"),
        ("answers", "list of name, ok and detail (what was wrong)"),
        ("features", "list of name, available and detail (what for, or why it is missing)"),
    ),
    exit_codes=(("0", "all answers were right"), ("1", "one was wrong")),
    see_also=("version",),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Ask, report, and return 1 if an answer was wrong."""
    from lamina.cli.machine_report import features
    from lamina.cli.self_tests import run_self_tests

    answers = list(run_self_tests())
    ok = all(answer.ok for answer in answers)
    machine = list(features())
    if args.json:
        print_json(
            {
                "ok": ok,
                "answers": [answer._asdict() for answer in answers],
                "features": [feature._asdict() for feature in machine],
            }
        )
        return 0 if ok else 1
    for answer in answers:
        print_line(f"{'ok   ' if answer.ok else 'WRONG'} {answer.name} {answer.detail}".rstrip())
    print_line("")
    print_table(
        [(each.name, "yes" if each.available else "no", each.detail) for each in machine],
        frozenset(),
        2,
        0,
    )
    return 0 if ok else 1

"""``lamina logs``."""

from __future__ import annotations

import re
import sys
import time
from argparse import Namespace
from typing import Final

from lamina.cli.container_verbs import named_container
from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options, add_store_option
from lamina.cli.output import flush_output, print_bytes
from lamina.cli.parser import Parser
from lamina.errors import UsageError

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

HELP: Final = HelpPage(
    """
    Prints what a container of `lamina run -d` wrote: its standard output on standard output, its
    standard error on standard error. With a terminal both are one. The file is
    STORE/containers/NAME/container.log, in the form that Kubernetes has for logs (CRI); it is not
    rotated, and goes with the container.
    """,
    examples=(
        ("lamina logs web", "All of it."),
        ("lamina logs -f --tail 10 web", "The last ten lines, and what comes."),
        ("lamina logs -t --since 10m web", "Of the last ten minutes, with the time of each line."),
    ),
    environment=(STORE_ENVIRONMENT,),
    see_also=("ps", "wait", "run"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("container", metavar="CONTAINER", help="name, as `lamina ps -a` lists it")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="print what comes, until the container ends"
    )
    parser.add_argument("-n", "--tail", metavar="LINES", help="only so many lines of what is there")
    parser.add_argument(
        "-t", "--timestamps", action="store_true", help="print the time before each line"
    )
    parser.add_argument("--since", metavar="TIME", help="not what is older: 10m, or RFC 3339")
    parser.add_argument("--until", metavar="TIME", help="not what is newer")
    add_store_option(parser)
    add_output_options(parser, json=False)


def run(args: Namespace) -> int:
    """Print the log."""
    from lamina.containers.log_format import shown_time
    from lamina.containers.reading import read_log

    since_ns, until_ns = _time_ns(args.since), _time_ns(args.until)
    container = named_container(args, args.container)
    begins = {"stdout": True, "stderr": True}
    for entry in read_log(container, follow=args.follow, tail=_lines(args.tail)):
        if since_ns is not None and entry.time_ns < since_ns:
            continue
        if until_ns is not None and entry.time_ns > until_ns:
            continue
        stamp = args.timestamps and begins[entry.stream]
        begins[entry.stream] = entry.is_whole
        head = f"{shown_time(entry.time_ns)} ".encode() if stamp else b""
        data = head + entry.content + b"\n" * entry.is_whole
        if entry.stream == "stdout":
            print_bytes(data)
        else:
            sys.stderr.flush()
            sys.stderr.buffer.write(data)
            sys.stderr.flush()
        if args.follow:
            flush_output()
    return 0


def _lines(text: str | None) -> int | None:
    from lamina.cli.container_values import count

    if text is None or text == "all":
        return None
    lines = count(text)
    return None if lines < 0 else lines


def _time_ns(text: str | None) -> int | None:
    """Return ``10m``, ``1h30m``, seconds since 1970 or RFC 3339 in nanoseconds since 1970."""
    from lamina.containers.log_format import read_time_ns

    if text is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return int(float(text) * 10**9)
    parts = re.findall(r"(\d+)([smhd])", text)
    if parts and "".join(f"{number}{unit}" for number, unit in parts) == text:
        ago_s = sum(int(number) * _SECONDS[unit] for number, unit in parts)
        return time.time_ns() - ago_s * 10**9
    moment = read_time_ns(text)
    if moment is None:
        raise UsageError(f"{text!r} is no time", hint="write 10m, or 2026-01-31T12:00:00Z")
    return moment

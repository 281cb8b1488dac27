"""``lamina ps``."""

from __future__ import annotations

import shlex
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli.container_verbs import store_root
from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options, add_store_option
from lamina.cli.output import print_json, print_line, print_table, shown_text
from lamina.cli.parser import Parser
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.containers.places import Container

_FILTERS: Final = ("name", "label", "status", "ancestor", "id")
_SHORT: Final = 24

HELP: Final = HelpPage(
    """
    Lists the containers of `lamina run` that run, in the foreground or not and of whichever store;
    with -a also those that have ended and are kept in the store. The runtime knows those that run
    too: `runc --root /run/lamina/runtime list`.
    """,
    examples=(
        ("lamina ps", "What runs."),
        ("lamina ps -a -f label=job=nightly", "Of one label, ended or not."),
        ("lamina rm -f $(lamina ps -aq)", "Remove all of them."),
    ),
    json_note="One object a line for every container.",
    json_keys=(
        ("container", "its name"),
        ("image", "as it was called"),
        ("command", "list of words"),
        ("status", "created, running, paused, exited, lost (by its processes), unknown (runtime)"),
        ("pid", "of its first process on this machine, 0 if it has ended"),
        ("exit_code", "null until it has ended, or if nobody knows"),
        ("created, finished", "in seconds since 1970; finished is 0 until then"),
        ("labels", "of the image and of --label"),
        ("log, changes", "paths"),
        ("supervisors", "pids of the processes that look after it"),
    ),
    environment=(STORE_ENVIRONMENT,),
    see_also=("run", "exec", "logs", "stop", "rm"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("-a", "--all", action="store_true", help="also those that have ended")
    add("-q", action="store_true", dest="names_only", help="print names only, one a line")
    add(
        "-f",
        "--filter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"only those; KEY is {', '.join(_FILTERS[:-1])}; may be repeated",
    )
    add("-n", "--last", type=int, metavar="COUNT", help="the last so many, ended or not")
    add("-l", "--latest", action="store_true", help="the last one, ended or not")
    add("--no-trunc", action="store_true", help="cut nothing short")
    add("--format", choices=("table", "json"), metavar="table|json", help="json is --json")
    add_store_option(parser)
    add_output_options(parser, short_quiet=False)


def run(args: Namespace) -> int:
    """List the containers."""
    last = 1 if args.latest else args.last
    found = [_facts(each) for each in _containers(args, every=args.all or last is not None)]
    found = [each for each in found if all(_matches(each, text) for text in args.filter)]
    found.sort(key=lambda each: -float(str(each["created"])))
    if last is not None:
        found = found[:last]
    if args.names_only:
        for each in found:
            print_line(str(each["container"]))
    elif args.json or args.format == "json":
        for each in found:
            print_json(each)
    else:
        rows: list[tuple[str, ...]] = [("CONTAINER", "IMAGE", "COMMAND", "CREATED", "STATUS")]
        rows += [_row(each, whole=args.no_trunc) for each in found]
        print_table(rows, frozenset(), 1, 2)
    return 0


def _containers(args: Namespace, *, every: bool) -> list[Container]:
    from lamina.containers.places import list_ended, list_live

    wanted_ended = every or any(text.startswith("status=exited") for text in args.filter)
    return [*list_live(), *(list_ended(store_root(args)) if wanted_ended else ())]


def _facts(container: Container) -> dict[str, object]:
    from lamina.containers.record import LOG_FILE
    from lamina.containers.runtime_state import runtime_state

    record = container.record
    status, pid = "exited", 0
    if container.is_live:
        try:
            status, pid = runtime_state(record.runtime, record.name)
        except OSError:
            # Its runtime is not there any more.
            status = "unknown"
        # Between its end and the end of what is mounted for it.
        status = {"stopped": "exited", "gone": "exited"}.get(status, status)
        status = "lost" if container.is_lost else status
    return {
        "container": record.name,
        "image": record.image,
        "command": list(record.command),
        "status": status,
        "pid": pid,
        "exit_code": record.exit_code,
        "created": round(record.created_s, 3),
        "finished": round(record.finished_s, 3),
        "labels": record.labels,
        "log": f"{container.folder}/{LOG_FILE}" if record.detached else None,
        "changes": f"{container.folder}/upper",
        "supervisors": list(record.supervisors) if container.is_live else [],
    }


def _matches(facts: dict[str, object], text: str) -> bool:
    key, _, value = text.partition("=")
    if key not in _FILTERS or not value:
        raise UsageError(
            f"{text!r} is no filter",
            hint=f"write -f KEY=VALUE with KEY one of {', '.join(_FILTERS)}",
        )
    if key in ("name", "id"):
        return value in str(facts["container"])
    if key == "ancestor":
        return value in str(facts["image"])
    if key == "status":
        return facts["status"] == value
    labels = facts["labels"]
    assert isinstance(labels, dict)
    name, equals, wanted = value.partition("=")
    return name in labels and (not equals or labels[name] == wanted)


def _row(facts: dict[str, object], *, whole: bool) -> tuple[str, ...]:
    from lamina.cli.verbs.images import age

    command = facts["command"]
    assert isinstance(command, list)
    words = shown_text(shlex.join(command))
    if not whole and len(words) > _SHORT:
        words = f"{words[: _SHORT - 1]}…"
    now = time.time()
    created_s, finished_s = float(str(facts["created"])), float(str(facts["finished"]))
    status = str(facts["status"])
    if status == "exited":
        code = facts["exit_code"]
        when = f", {age(now - finished_s)}" if finished_s else ""
        status = f"exited ({'?' if code is None else code}){when}"
    return (
        str(facts["container"]),
        shown_text(str(facts["image"]).removeprefix("docker://")),
        words,
        age(now - created_s),
        status,
    )

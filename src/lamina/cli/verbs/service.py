"""``lamina service``."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import STORE_ENVIRONMENT, add_output_options, add_store_option
from lamina.cli.output import print_bytes, print_json, print_text
from lamina.cli.parser import Parser
from lamina.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from lamina.serve.service.control import ServiceFacts

HELP: Final = HelpPage(
    """
    `lamina mount` starts the service of the mounts when it needs it, and the last `lamina umount`
    ends it. `service run` is that service in the foreground, without end, for a unit of a service
    manager: Type=notify, NotifyAccess=all, and FileDescriptorStoreMax=512, with which the mounts
    survive even the death of all its processes. Stopped by SIGTERM it unmounts everything, unless a
    service manager keeps the mounts.

    `service upgrade` starts a service of the program as it is now, which takes over all mounts
    while they are read, as SIGHUP to the supervisor does. `service reload` is the same under the
    name that service managers have for it.

    `service status` tells who serves. `service metrics` prints what there is to count of the
    mounts, the service and the node store, in Prometheus' text format, also while no service runs;
    it needs the extra "metrics". `service stop` unmounts everything, also what is in use, of
    which readers get errors from then on, and waits until the service has ended; one that a
    service manager keeps is stopped there.
    """,
    examples=(
        ("lamina service status", "Who serves, how many mounts, and where the log is."),
        ("lamina service upgrade", "After a new version was installed."),
    ),
    json_keys=(
        ("pids", "status: by role, holder, supervisor and worker"),
        ("mounts", "status, stop: how many mounts are served, or were"),
        ("socket, log", "status: paths; log is null if it is no file, as below systemd"),
        ("managed", "status: true if a service manager keeps the service"),
        ("upgraded, reloaded, stopped", "true, of the action of that name"),
    ),
    environment=(STORE_ENVIRONMENT,),
    exit_codes=(
        ("7", "No mount service runs."),
        ("8", "It runs, and does not answer, does not end, or cannot be replaced."),
    ),
    see_also=("mount", "mounts", "umount"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the arguments."""
    actions = ("run", "status", "metrics", "stop", "reload", "upgrade")
    parser.add_argument("action", choices=actions, help="what to do")
    add_store_option(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Do it."""
    if args.action == "run":
        from lamina.serve.service.start import main

        main(())
    elif args.action == "status":
        _show_status(as_json=args.json)
    elif args.action == "metrics":
        _show_metrics(args)
    elif args.action == "stop":
        _stop(as_json=args.json)
    else:
        _replace(args.action, as_json=args.json)
    return 0


def _show_status(*, as_json: bool) -> None:
    from lamina.serve.service.control import service_facts

    facts = service_facts()
    if facts is None:
        raise _none_runs()
    if as_json:
        print_json(facts._asdict())
    else:
        print_text(_text(facts))


def _text(facts: ServiceFacts) -> str:
    pids = ", ".join(f"{role} {pid}" for role, pid in sorted(facts.pids.items()))
    keeper = "a service manager" if facts.managed else "its mounts, and ends with the last"
    rows = (
        ("processes", pids),
        ("mounts", str(facts.mounts)),
        ("kept by", keeper),
        ("socket", facts.socket),
        ("log", facts.log or "standard error"),
    )
    return "".join(f"{name + ':':<11}{value}\n" for name, value in rows)


def _show_metrics(args: Namespace) -> None:
    from lamina.cli.opening import node_store
    from lamina.serve.metrics import ServiceMetrics, new_registry, page_of

    page = page_of(new_registry(ServiceMetrics(node_store(args))))
    if args.json:
        raise UsageError("metrics are text", hint="`lamina mounts --json` has those of the mounts")
    print_bytes(page)


def _stop(*, as_json: bool) -> None:
    from lamina.serve.service.control import stop_service

    mounts = stop_service()
    if mounts is None:
        raise _none_runs()
    if as_json:
        print_json({"stopped": True, "mounts": mounts})
    else:
        console.info(f"the mount service has ended, and {mounts} mounts with it")


def _replace(action: str, *, as_json: bool) -> None:
    from lamina.serve.service.client import upgrade_service

    if not upgrade_service():
        raise _none_runs()
    if as_json:
        print_json({"reloaded" if action == "reload" else "upgraded": True})
    else:
        console.info("the mount service is replaced")


def _none_runs() -> NotFoundError:
    return NotFoundError("no mount service runs", hint="lamina mount starts one")

"""``lamina mounts``."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import add_output_options
from lamina.cli.output import print_bytes, print_json, print_table, share, shown_text
from lamina.cli.parser import Parser

if TYPE_CHECKING:
    from lamina.serve.mounts import MountStatus

HELP: Final = HelpPage(
    """
    Lists the images that this user mounted with `lamina mount`, and who serves each. A mount is
    `served`; `resident` if all of it is here and no process is needed; `broken` if all who served
    it are gone, so that reads of what is not in memory fail, which `lamina mount` on the same
    folder mends; or `detached` after a lazy unmount, while somebody still uses it.
    """,
    examples=(
        ("lamina mounts", "A table."),
        ("lamina mounts --json | jq -r .image", "The references that are in use."),
    ),
    json_note="One object a line for every mount.",
    json_keys=(
        ("mountpoint", "absolute path of the folder"),
        ("image", "the reference, with the digest it had"),
        ("device", "fanotify, fuse-blob or fuse"),
        ("digest", "of the image's manifest"),
        ("state", "served, resident, broken or detached"),
        ("resident", "true if no process is needed"),
        ("pids", "by role: holder, supervisor and worker; or server, with --foreground"),
        ("options", "of the mount, as the kernel has them now: nosuid, nodev, ..."),
        ("ready_bytes, total_bytes", "what is here of the blobs, decompressed; null if unknown"),
        ("pid", "process id of who made the mount"),
    ),
    see_also=("mount", "umount"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--mountpoints", action="store_true", help="print the folders only, one a line"
    )
    add_output_options(parser)


def run(args: Namespace) -> int:
    """List the mounts."""
    from lamina.cli.verbs.mount import record_object
    from lamina.serve.mounts import list_mounts

    mounts = list_mounts()
    if args.mountpoints:
        for status in mounts:
            print_bytes(os.fsencode(status.record.mountpoint) + b"\n")
    elif args.json:
        for status in mounts:
            print_json(
                {
                    **record_object(status.record),
                    "state": str(status.state),
                    "resident": status.resident,
                    "options": status.options,
                    "pids": status.pids,
                    "ready_bytes": status.ready_bytes,
                    "total_bytes": status.total_bytes,
                }
            )
    elif mounts:
        head = ("MOUNTPOINT", "IMAGE", "DEVICE", "STATE", "PID", "HERE")
        print_table([head, *map(_row, mounts)], frozenset(), 1, 0)
    return 0


def _row(status: MountStatus) -> tuple[str, ...]:
    pid = status.pids.get("supervisor", status.pids.get("server"))
    return (
        shown_text(status.record.mountpoint),
        shown_text(status.record.image),
        status.record.device,
        str(status.state),
        str(pid or "-"),
        _here(status),
    )


def _here(status: MountStatus) -> str:
    if status.resident:
        return "100 %"
    if status.ready_bytes is None or status.total_bytes is None:
        return "-"
    return share(status.ready_bytes, status.total_bytes)

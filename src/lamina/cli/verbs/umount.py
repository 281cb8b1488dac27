"""``lamina umount``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import add_output_options
from lamina.cli.output import print_json
from lamina.cli.parser import Parser
from lamina.errors import UsageError

HELP: Final = HelpPage(
    """
    Unmounts images that `lamina mount` mounted, and ends their servers. What was fetched stays in
    the node store. While a program uses the mount it is busy; with --lazy it leaves the tree of
    folders at once, and its server ends when the last program has closed its files.
    """,
    examples=(
        ("lamina umount /mnt", "One mount."),
        ("lamina umount --lazy /mnt /srv/node", "Two mounts, whoever uses them."),
        ("lamina umount --all", "All of this user's mounts."),
    ),
    json_note="One object a line for every mount.",
    json_keys=(("image, mountpoint", "what was unmounted"),),
    see_also=("mount", "mounts"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument(
        "folders", metavar="MOUNTPOINT", nargs="*", help="folders that images are mounted on"
    )
    parser.add_argument("-l", "--lazy", action="store_true", help="do not wait for its users")
    parser.add_argument("-a", "--all", action="store_true", help="unmount all")
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Unmount one after the other; the first that cannot be ends it."""
    from lamina.serve.mounts import unmount, unmount_all

    if args.all == bool(args.folders):
        raise UsageError("umount wants folders, or --all", hint="`lamina mounts` lists them")
    one_by_one = (unmount(folder, lazy=args.lazy) for folder in args.folders)
    for record in unmount_all(lazy=args.lazy) if args.all else one_by_one:
        if args.json:
            print_json({"image": record.image, "mountpoint": record.mountpoint})
        else:
            console.info(f"unmounted {record.mountpoint}")
    return 0

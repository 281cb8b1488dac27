"""``lamina mount``."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.key_options import forget_passphrases
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_device_option,
    add_output_options,
    add_registry_options,
)
from lamina.cli.output import print_json
from lamina.cli.parser import Parser
from lamina.cli.start_options import add_profile_option, start_rule
from lamina.cli.start_plan_options import add_complete_options, check_complete_options

if TYPE_CHECKING:
    from lamina.serve.mount_records import MountRecord
    from lamina.serve.service.spec import MountSpec

HELP: Final = HelpPage(
    """
    Mounts an image read-only on a folder and returns as soon as its tree can be read. A
    service stays behind, one for all mounts of the user, which fetches and verifies what is read;
    it ends with the last mount. Any of its processes may be killed or upgraded: readers wait for
    the next one. With --foreground the server is this process alone, and ends the mount when it is
    told to stop. A mount that is broken is mounted anew.

    A reader gets the right bytes, waits, or gets an error: EIO for damaged data, ETIMEDOUT or EIO
    when the registry does not deliver, ENOSPC when the store is full. The log says why: service.log
    in the runtime folder.
    """,
    examples=(
        ("lamina mount localhost:5000/node /mnt", "Then look around in /mnt."),
        ("lamina mount --device fuse oci:native:debian ~/debian", "Without root."),
        ("lamina mount --foreground -v IMAGE /mnt", "Watch what is fetched, stop with ^C."),
    ),
    json_keys=(
        ("image, digest", "the reference, and the digest that it had"),
        ("mountpoint", "absolute path of the folder"),
        ("device", "fanotify, fuse-blob or fuse"),
        ("pid", "process id of the supervisor, or of the server in the foreground"),
        ("resident", "true if everything is here, so that no process is needed"),
        ("store", "folder of the node store"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("umount", "mounts", "run"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of a native or indexed image")
    parser.add_argument("folder", metavar="DIR", help="existing folder to mount on")
    add_device_option(parser)
    parser.add_argument(
        "-o",
        "--options",
        action="append",
        metavar="OPTION[,OPTION]",
        default=[],
        help="of suid, dev (root), noexec, noatime and their opposites, later ones win; without "
        "suid and dev, set-uid programs and device nodes of the image do not work; the mount is "
        "read-only in any case; may be repeated",
    )
    add_profile_option(parser)
    add_complete_options(parser)
    parser.add_argument(
        "--foreground", action="store_true", help="serve in this process until it is stopped"
    )
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Mount, and leave it to the service or serve it."""

    def tell(record: MountRecord) -> None:
        if args.json:
            print_json(record_object(record))
        else:
            console.info(f"{record.image} is mounted on {record.mountpoint} ({record.device})")

    from lamina.cli.opening import index_and_tell

    spec = mount_spec(args)
    if args.foreground:
        from lamina.serve.foreground import serve_foreground

        serve_foreground(spec, tell, index_and_tell)
    else:
        from lamina.serve.service.mounting import mount_by_service

        tell(mount_by_service(spec, index_and_tell))
    return 0


def mount_spec(args: Namespace) -> MountSpec:
    """Return what the arguments ask for, with nothing left to be asked or looked up."""
    from lamina.cli.opening import open_request
    from lamina.opening.request import for_another_process
    from lamina.serve.service.spec import MountSpec

    check_complete_options(args)
    image = for_another_process(open_request(args, args.image, start=start_rule(args)))
    forget_passphrases()
    return MountSpec(
        image=image,
        mountpoint=os.path.abspath(args.folder),
        device=args.device,
        options=tuple(args.options),
        complete=args.complete,
        limit_rate=args.limit_rate,
    )


def record_object(record: MountRecord) -> dict[str, object]:
    """Return a mount as JSON."""
    return {
        "image": record.image,
        "digest": record.digest,
        "mountpoint": record.mountpoint,
        "device": record.device,
        "pid": record.pid,
        "store": record.store,
        "resident": record.resident,
    }

"""``lamina mount``."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import story
from lamina.cli.broker_options import broker_arguments
from lamina.cli.key_options import forget_passphrases, key_texts_for_later
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_device_option,
    add_output_options,
    add_registry_options,
    ask_credentials,
    client_options,
)
from lamina.cli.output import print_json
from lamina.cli.page import Page
from lamina.cli.parser import Parser
from lamina.cli.planning import add_complete_options, check_complete_options

if TYPE_CHECKING:
    from lamina.serve.service.spec import MountSpec
    from lamina.serve.state import MountRecord

PAGE: Final = Page(
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
            story.tell(f"{record.image} is mounted on {record.mountpoint} ({record.device})")

    spec = mount_spec(args)
    if args.foreground:
        from lamina.serve.daemon import MountRequest, serve_foreground
        from lamina.serve.service.spec import open_spec

        request = MountRequest(
            open_image=lambda: open_spec(spec),
            reference=spec.reference,
            mountpoint=spec.mountpoint,
            store=spec.store,
            device=spec.device,
            options=spec.options,
        )
        serve_foreground(request, tell)
    else:
        from lamina.serve.service.mounting import mount_by_service

        tell(mount_by_service(spec))
    return 0


def mount_spec(args: Namespace) -> MountSpec:
    """What the arguments ask for, with nothing left to be asked or looked up."""
    from dataclasses import asdict

    from lamina.serve.service.spec import MountSpec
    from lamina.store.node import default_root
    from lamina.store.space import BUDGET_VARIABLE

    check_complete_options(args)
    ask_credentials(args)
    make_absolute(args)
    return MountSpec(
        reference=args.image,
        mountpoint=args.folder,
        store=args.store or str(default_root()),
        store_budget=args.store_budget or os.environ.get(BUDGET_VARIABLE) or None,
        device=args.device,
        options=tuple(args.options),
        platform=args.platform,
        index=args.index,
        decryption_keys=tuple(args.decryption_key),
        key_providers=absolute_from_environment("OCICRYPT_KEYPROVIDER_CONFIG"),
        key_broker=broker_arguments(args),
        policy=args.policy,
        allow_older=args.allow_older,
        client=asdict(client_options(args)),
        complete=args.complete,
        limit_rate=args.limit_rate,
    )


def absolute_from_environment(name: str) -> str | None:
    """A path from the environment, for a process in another folder."""
    value = os.environ.get(name)
    return os.path.abspath(value) if value else None


def make_absolute(args: Namespace) -> None:
    """Free the arguments from this process's working folder, which the server leaves."""
    from dataclasses import replace

    from lamina.registry.reference import parse_reference

    reference = parse_reference(args.image)
    if not reference.is_remote:
        args.image = str(replace(reference, path=os.path.abspath(reference.path)))
    args.decryption_key = key_texts_for_later(args.decryption_key)
    forget_passphrases()
    for name in ("folder", "store", "authfile", "ca_file", "policy", "kbs_ca", "kbs_init_data"):
        value = getattr(args, name)
        if value is not None:
            setattr(args, name, os.path.abspath(value))


def record_object(record: MountRecord) -> dict[str, object]:
    """A mount as JSON."""
    return {
        "image": record.image,
        "digest": record.digest,
        "mountpoint": record.mountpoint,
        "device": record.device,
        "pid": record.pid,
        "store": record.store,
        "resident": record.resident,
    }

"""``lamina guest-disk``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import closing
from typing import TYPE_CHECKING, Final

from lamina.cli.guest_options import add_guest_options, guest_settings
from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
    client_options,
)
from lamina.cli.output import print_json, print_line
from lamina.cli.parser import Parser
from lamina.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina.guest.disk_plan import DiskPlan

HELP: Final = HelpPage(
    """
    A confidential guest without a daemon: its host serves a disk of ciphertext, which the guest's
    own kernel decrypts and checks. Nothing of Lamina runs in the guest once the disk is open.

    `make SRC DST` pushes the disk of an image as an image of its own, DST: the file system with its
    hash tree behind it, encrypted by the key of 64 bytes in --key-file, which the broker is to have
    as --key kbs:///REPOSITORY/TYPE/TAG; and the plan, which says where the key is and what the root
    hash. Sign DST afterwards.

    `plan IMAGE` is for whoever deploys a guest: it proves the signature of such an image by
    --policy and prints the line for the table [data] of the guest's init-data. Its digest is in the
    evidence of the CPU, so by a rule of the broker the key is given for this disk only.

    The host serves it: `lamina serve nbd IMAGE --file disk --socket S`, without any key.

    `open DEVICE NAME` runs once in the guest: it attests itself, gets the key from the broker, has
    device-mapper make NAME by the plan in --init-data, and prints the device to mount. A disk that
    is another one is refused; a sector that was changed is an I/O error of its reader.
    """,
    examples=(
        (
            "lamina guest-disk make --key-file key --key kbs:///team/disk/app SRC DST",
            "Once; `head -c 64 /dev/urandom > key` makes a key, for the broker too.",
        ),
        ("lamina guest-disk plan --policy policy.json DST >> initdata.toml", "At each deployment."),
        (
            "lamina guest-disk open --init-data FILE /dev/vda app",
            "In the guest; prints what to mount.",
        ),
    ),
    json_keys=(
        ("version, key, root_hash, data_blocks", "make and plan: the plan"),
        ("hash_offset", "make and plan: where veritysetup finds the tree once it is decrypted"),
        ("digest", "make: that of DST"),
        ("device", "open: what is to be mounted"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("guest", "serve", "export", "kbs", "sign"),
)
_WORDS: Final = {"make": "SRC DST", "plan": "IMAGE", "open": "DEVICE NAME"}


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("action", choices=tuple(_WORDS), help="what to do")
    parser.add_argument(
        "words", metavar="WORD", nargs="+", help="SRC and DST, an IMAGE, or DEVICE and NAME"
    )
    group = parser.add_argument_group("Options of the disk")
    group.add_argument("--key-file", metavar="FILE", help="make: 64 bytes for aes-xts-plain64")
    group.add_argument(
        "--key", metavar="URI", help="make: what the broker has them as, kbs:///TEAM/TYPE/TAG"
    )
    add_guest_options(parser)
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Do the action."""
    wanted = _WORDS[args.action]
    if len(args.words) != len(wanted.split()):
        raise UsageError(f"`lamina guest-disk {args.action}` wants {wanted}")
    if args.action == "make":
        return _make(args, *args.words)
    if args.action == "plan":
        return _plan(args, *args.words)
    return _open(args, *args.words)


def _make(args: Namespace, source: str, destination: str) -> int:
    import tempfile
    from pathlib import Path

    from lamina.build.options import work_folder
    from lamina.cli.opening import open_native
    from lamina.guest.disk_image import push_layout, write_layout
    from lamina.oci.reference import parse_reference
    from lamina.trust.broker.kbs_packet import parse_resource

    if args.key_file is None or args.key is None:
        raise UsageError("a disk is made with a key", hint="--key-file FILE --key kbs:///...")
    try:
        key = Path(args.key_file).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {args.key_file}: {error.strerror}") from error
    resource, target = parse_resource(args.key), parse_reference(destination)
    folder = work_folder(None)
    with tempfile.TemporaryDirectory(prefix="lamina-guest-disk-", dir=folder) as name:
        with closing(open_native(args, source)) as image:
            plan, written = write_layout(image, key, resource, Path(name))
        digest = push_layout(written, target, client_options(args))
    _tell(args, plan, (f"digest     {digest}", f"root hash  {plan.root_hash}"), digest=digest)
    return 0


def _plan(args: Namespace, image: str) -> int:
    from lamina.cli.opening import open_native
    from lamina.guest.disk_image import read_plan
    from lamina.guest.disk_plan import init_data_line

    if args.policy is None:
        raise UsageError(
            "a plan is what a guest believes, so it is taken from a signed image only",
            hint="--policy FILE",
        )
    with closing(open_native(args, image)) as opened:
        plan = read_plan(opened)
    _tell(args, plan, (init_data_line(plan),))
    return 0


def _tell(args: Namespace, plan: DiskPlan, lines: Sequence[str], **more: str) -> None:
    if args.json:
        facts = {name: getattr(plan, name) for name in plan.__struct_fields__}
        print_json(facts | {"hash_offset": plan.hash_offset_bytes} | more)
        return
    for line in lines:
        print_line(line)


def _open(args: Namespace, device: str, name: str) -> int:
    from lamina.guest.open_disk import open_disk

    found = open_disk(device, name, guest_settings(args))
    if args.json:
        print_json({"device": found})
    else:
        print_line(found)
    return 0

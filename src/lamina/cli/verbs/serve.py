"""``lamina serve``."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
)
from lamina.cli.parser import Parser
from lamina.cli.start_options import add_profile_option
from lamina.errors import UsageError

HELP: Final = HelpPage(
    """
    `nbd IMAGE` serves an image as a read-only disk, an EROFS file system that Linux mounts, to
    virtual machines and other clients of NBD. The disk is never written out: what is read is
    fetched and verified, and kept in the node store. Metadata are here before the first client is,
    so that looking around in the image costs no request.

    A read that the registry does not answer waits, for as long as that takes: a guest that waits
    goes on where a guest that got an error does not. Only bytes that are wrong are an error at
    once. Give QEMU reconnect-delay, so that the server may be replaced under a guest.

    With --verity the hash tree of the disk, which `lamina export --attach` put beside the image, is
    served behind it, so that the guest's kernel checks each block by a root hash that it got from
    somebody it trusts. If the image's verified signature states a root hash (`lamina sign
    --root-hash`), only that tree is served. All of the tree is here before the first client is.

    With --file a file of the image is the disk, and not the image: the ciphertext that `lamina
    guest-disk make` has pushed, for guests that do not trust this host.

    Without --socket and --listen it takes the socket that a socket unit of systemd, or a program
    that starts it for itself, hands over. Clients on other machines are served only if they prove
    by TLS who they are; files have the names that QEMU and nbdkit give them.

    `content-cache DIR IMAGE...` offers the layers of images below DIR, each as an EROFS file that
    is filled as it is read, where containerd 2.4 and newer looks for them before it pulls a layer
    (layer_content_caches of its EROFS snapshotter). It needs root and indexes that were made with
    `lamina index --layers`. containerd checks nothing of these files and uses a layer for every
    image that names it: name only images whose pushers you trust with all of them. With --verity
    each layer is read once to its end before it is offered, and the kernel checks what it reads.

    `cache PREFIX...` serves what registries have to guests of this machine, and keeps it as it
    came, so that the second guest costs the registry next to nothing. It has no keys: of a sealed
    image it keeps and passes on what its leaf table proves, of other images what it fetched, which
    guests verify in any case. It is a mirror as a hosts.toml names them, for the registries and
    beginnings of repositories' names that are given, and reads only; to a private registry it goes
    with its own credentials, so these should be able to do no more than pull. The store is best one
    of its own. With --channel it serves guests that have no network, over a virtio serial port each
    (-chardev socket,path=PATH).

    `virtiofs IMAGE` shows an image to a virtual machine as a virtio-fs share, by virtiofsd over a
    mount; `virtiofs NAME=IMAGE...` several, each in a folder of one share. The guest mounts the tag
    `image`. It needs root, and ends with the virtual machine.

    It ends when it is told to (SIGTERM, ^C); a content cache then offers nothing any more, and
    answers until nobody reads its layers, or it is told again.
    """,
    examples=(
        ("lamina serve nbd localhost:5000/node --socket node.sock", "For QEMU on this machine."),
        ("lamina serve nbd IMAGE --listen 127.0.0.1:10809", "For any client on this machine."),
        (
            "lamina serve nbd IMAGE --socket app.sock --give-up-after 600",
            "Tell a guest of an I/O error after ten minutes.",
        ),
        (
            "lamina serve nbd IMAGE --socket app.sock --print-command qemu",
            "Print how QEMU takes the disk.",
        ),
        (
            "lamina serve nbd IMAGE --listen [::]:10809 --tls-certificates DIR --tls-verify-peer",
            "For machines that have a certificate.",
        ),
        (
            "lamina serve content-cache /run/lamina/layers localhost:5000/app localhost:5000/db",
            "Layers for a stock containerd.",
        ),
        (
            "lamina serve cache registry.example/team --listen 127.0.0.1:5001 --store-budget 20G",
            "For the guests of this machine.",
        ),
        (
            "lamina serve virtiofs --socket share.sock app=localhost:5000/app db=localhost:5000/db",
            "Two images as folders of one share.",
        ),
    ),
    json_keys=(
        ("uri", "where clients reach the disk from now on"),
        ("size", "bytes of the disk"),
        ("url or socket", "where guests reach a cache from now on"),
        ("socket, tag, images", "of a share: where it is, its name, and images by folder"),
        ("folder, layers", "of a content cache: DIR, and path, size and diff_id of each layer"),
        ("root_hash, data_blocks, hash_offset, salt, table", "with a hash tree: as of `export`"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("export", "mount", "coverage"),
)
_KINDS: Final = ("nbd", "content-cache", "cache", "virtiofs")
_LISTENING: Final = ("socket", "listen")
_OF_NBD: Final = (
    *("file", "hash_file", "root_hash", "tls_certificates"),
    *("tls_verify_peer", "tls_psk", "record", "name"),
)
"""Options that mean nothing to others."""
_OF_CACHES: Final = ("channel",)
_OF_MACHINES: Final = ("print_command",)
_OF_IMAGES: Final = ("verity", "profile", "policy")
"""Options that mean nothing to a cache for guests."""
_MACHINES: Final = (
    "qemu",
    "qemu-vhost-user",
    "qemu-storage-daemon",
    "cloud-hypervisor",
    "firecracker",
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument(
        "kind",
        choices=_KINDS,
        help="as what: nbd, a disk over NBD; content-cache, layers as files; cache, for guests; "
        "virtiofs, a share",
    )
    parser.add_argument(
        "served",
        metavar="IMAGE",
        nargs="+",
        help="reference of a native or indexed image; of a content cache DIR first, and "
        "several; of a cache HOST or HOST/PATH, and several",
    )
    parser.add_argument("--socket", metavar="PATH", help="unix socket, for this user only")
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help="TCP, on a loopback address unless clients prove who they are; port 0 takes any",
    )
    parser.add_argument(
        "--channel",
        metavar="PATH",
        help="cache: unix socket that serial ports of guests are connected to as well, for `lamina "
        "guest relay`",
    )
    parser.add_argument("--name", metavar="NAME", default="", help="name of the export (any)")
    parser.add_argument(
        "--layout",
        choices=("plain", "nydus"),
        default="plain",
        metavar="LAYOUT",
        help="plain or nydus, as of `lamina export` (%(default)s)",
    )
    parser.add_argument(
        "--file",
        metavar="PATH",
        help="serve this file of the image as the disk, as `lamina guest-disk` makes them",
    )
    parser.add_argument(
        "--give-up-after",
        metavar="SECONDS",
        type=float,
        help="answer with an I/O error what did not come for so long (never)",
    )
    parser.add_argument(
        "--print-command",
        choices=_MACHINES,
        metavar="MACHINE",
        help=f"print how a virtual machine takes the disk, and end: {', '.join(_MACHINES)}",
    )
    group = parser.add_argument_group("Options of the hash tree")
    group.add_argument(
        "--verity",
        action="store_true",
        help="serve the hash tree that is attached to the image, behind it on the same disk; of a "
        "content cache: make one of each layer",
    )
    group.add_argument(
        "--hash-file", metavar="FILE", help="serve the tree in FILE, of `lamina export --hash-file`"
    )
    group.add_argument(
        "--root-hash", metavar="HEX", help="refuse a tree that has another root hash"
    )
    group = parser.add_argument_group("Options of TLS")
    group.add_argument(
        "--tls-certificates",
        metavar="DIR",
        help="serve with TLS only; DIR has server-cert.pem and server-key.pem",
    )
    group.add_argument(
        "--tls-verify-peer",
        action="store_true",
        help="clients must have a certificate of the authority in DIR/ca-cert.pem",
    )
    group.add_argument(
        "--tls-psk",
        metavar="FILE",
        help="serve with TLS only, to whoever has a key of FILE, USER:HEX a line (Python 3.13)",
    )
    add_profile_option(parser)
    parser.add_argument(
        "--record",
        metavar="FILE",
        help="write a profile of what was read into FILE at the end, for `lamina profile --from`",
    )
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    if args.kind == "nbd":
        from lamina.cli.nbd_serving import serve_nbd

        if len(args.served) != 1:
            raise UsageError("`lamina serve nbd` serves one image")
        _refuse(args, *_OF_CACHES)
        return serve_nbd(args)
    if args.kind == "cache":
        from lamina.cli.cache_serving import serve_cache

        _refuse(args, *_OF_NBD, *_OF_MACHINES, *_OF_IMAGES)
        return serve_cache(args)
    if args.kind == "virtiofs":
        from lamina.cli.virtiofs_serving import serve_virtiofs

        _refuse(args, *_OF_NBD, *_OF_CACHES, "listen", "verity", "profile")
        return serve_virtiofs(args)
    from lamina.cli.content_cache_serving import serve_content_cache

    _refuse(args, *_OF_NBD, *_OF_CACHES, *_OF_MACHINES, *_LISTENING)
    if len(args.served) < 2:
        raise UsageError("`lamina serve content-cache` wants DIR and the images")
    return serve_content_cache(args)


def _refuse(args: Namespace, *options: str) -> None:
    for option in options:
        if getattr(args, option):
            raise UsageError(f"--{option.replace('_', '-')} is not of `lamina serve {args.kind}`")

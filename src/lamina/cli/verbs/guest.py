"""``lamina guest``."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.container_options import add_container_options, container_options
from lamina.cli.guest_options import add_guest_options, guest_settings
from lamina.cli.help_text import HelpPage
from lamina.cli.options import add_output_options
from lamina.cli.parser import Parser
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.guest.agent import GuestSettings

HELP: Final = HelpPage(
    """
    Inside of a confidential virtual machine, runs a container of an image whose host is not
    trusted. What the guest believes is in its init-data, whose digest the evidence of the CPU has
    in it: the key broker and its certificate, and the policy of images. The guest attests itself
    to the broker, gets policy, credentials and keys from it, proves the image's signature, mounts
    the image and runs the command. Files arrive as ciphertext when they are read, from the registry
    or from a cache of the host (`lamina serve cache`), and are verified and decrypted here.

    The init-data is that of confidential containers (TOML, version 0.1.0) with a cdh.toml in it: of
    that are understood kbc.url and kbc.kbs_cert, and of [image] image_security_policy,
    image_security_policy_uri, authenticated_registry_credentials_uri and extra_root_certificates.
    Keys in the policy may be kbs:///REPOSITORY/TYPE/TAG.

    `serve` answers on the socket of the confidential data hub (--socket) as a Kata agent calls it
    by ttrpc: api.ImagePullService/PullImage mounts an image as rootfs of a bundle and writes its
    config.json, api.GetResourceService/GetResource returns what the broker has.

    `relay` is for guests without a network: it carries connections to --listen over a virtio serial
    port to the host's cache (`lamina serve cache --channel`), which is http://127.0.0.1:5001 then.

    Everything is kept in the work folder, which has to be in memory (tmpfs) or on a disk of
    dm-crypt; one that the host could read is refused.

    With --evidence sample nothing is proven. It is for tests, and has the digest of the init-data,
    in hexadecimal, for its measurement.
    """,
    examples=(
        (
            "lamina guest run --init-data /run/initdata.toml registry.example/app:1",
            "Run the image's command.",
        ),
        (
            "lamina guest run --init-data FILE --cache http://10.0.2.2:5001 IMAGE node -v",
            "By the host's cache, as QEMU's user network shows the host's loopback.",
        ),
    ),
    exit_note="""
    The exit code is that of the command, as of `lamina run`. Of lamina itself is the following:
    """,
    exit_codes=(("125", "the image was refused, or lamina or the container runtime failed"),),
    see_also=("run", "serve", "kbs", "policy"),
    failure_code=125,
)
_DEFAULT_PORT: Final = "lamina.cache"
_DEFAULT_RELAY: Final = "127.0.0.1:5001"
_DEFAULT_SOCKET: Final = "/run/confidential-containers/cdh.sock"


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("action", choices=("run", "serve", "relay"), help="what to do")
    parser.add_argument(
        "image", metavar="IMAGE", nargs="?", help="run: reference of an image in a registry"
    )
    parser.add_argument(
        "command",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="what to run instead of the image's command, with its arguments",
    )
    group = add_guest_options(parser)
    group.add_argument(
        "--cache", metavar="URL", help="cache of the host, asked before the registry"
    )
    group.add_argument(
        "--cache-only", action="store_true", help="ask the cache for everything, and nobody else"
    )
    group.add_argument(
        "--blob-dir",
        metavar="DIR",
        action="append",
        default=[],
        help="folder of blobs by digest that the host shares, as by virtio-fs, asked before the "
        "cache; may be repeated",
    )
    group.add_argument(
        "--socket",
        metavar="PATH",
        default=_DEFAULT_SOCKET,
        help="serve: where the agent calls (%(default)s)",
    )
    group.add_argument(
        "--channel",
        metavar="PORT",
        default=_DEFAULT_PORT,
        help="relay: name, or device, of the serial port that the host's cache is behind "
        "(%(default)s)",
    )
    group.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        default=_DEFAULT_RELAY,
        help="relay: where this guest then has the cache (%(default)s)",
    )
    add_container_options(parser)
    add_output_options(parser, short_verbose=False, short_help=False, json=False)


def run(args: Namespace) -> int:
    """Do the action."""
    if args.cache_only and args.cache is None:
        raise UsageError("--cache-only goes with --cache")
    if args.action == "relay":
        return _relay(args)
    settings = guest_settings(
        args, cache=args.cache, cache_only=args.cache_only, blob_dirs=tuple(args.blob_dir)
    )
    if args.action == "serve":
        return _serve(args, settings)
    if args.image is None:
        raise UsageError("run needs an IMAGE")
    return _run(args, settings)


def _run(args: Namespace, settings: GuestSettings) -> int:
    """Run the container and return its exit code."""
    from lamina.containers.foreground import run_container
    from lamina.guest.agent import guest_request
    from lamina.opening.request import for_another_process
    from lamina.serve.run import RunRequest

    request = guest_request(args.image, settings)
    wanted = RunRequest(
        image=for_another_process(request),
        options=container_options(args),
        name=args.name,
        runtime=args.runtime,
        keep_changes=False,
    )
    return run_container(wanted).exit_code


def _relay(args: Namespace) -> int:
    """Carry connections until the host closes the port, or a signal ends this."""
    from lamina.cli.broker_serving import listen_address
    from lamina.guest.relay import find_port, relay
    from lamina.serve.nbd.listening import listen_tcp

    port = find_port(args.channel)
    with contextlib.closing(listen_tcp(*listen_address(args.listen))) as listening:
        console.info(f"the host's cache is at http://{args.listen}")
        relay(port, listening)
    return 0


def _serve(args: Namespace, settings: GuestSettings) -> int:
    """Answer the agent until SIGTERM or SIGINT."""
    from lamina.cli.end_signals import held_end_signals
    from lamina.guest.hub import HubServer
    from lamina.guest.image_pull import handlers
    from lamina.serve.nbd.listening import listen_unix

    os.makedirs(os.path.dirname(os.path.abspath(args.socket)), mode=0o700, exist_ok=True)
    with held_end_signals() as wait:
        server = HubServer(listen_unix(args.socket), handlers(settings))
        thread = threading.Thread(target=server.run, name="lamina-hub")
        thread.start()
        console.info(f"serving images on {args.socket}")
        wait()
        server.close()
        thread.join()
        with contextlib.suppress(OSError):
            os.unlink(args.socket)
    return 0

"""``lamina ctr-pull``."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
from lamina.cli.options import (
    REGISTRY_ENVIRONMENT,
    STORE_ENVIRONMENT,
    add_output_options,
    add_registry_options,
)
from lamina.cli.output import print_json
from lamina.cli.parser import Parser
from lamina.errors import UnsupportedError

SOCKET: Final = "/run/containerd/containerd.sock"

HELP: Final = HelpPage(
    """
    Pulls an image into containerd as CRI does: the snapshotter is told which image each layer is
    of, and has the layers without a download. `ctr images pull` of containerd 1.6 tells it nothing,
    so an ordinary image is unpacked there, and a native or sealed one cannot be pulled. Afterwards
    `ctr run --snapshotter lamina` runs the image.

    Images that would have to be unpacked are refused. The policy that decides is the snapshotter's;
    one that is given here decides as well.
    """,
    examples=(
        ("lamina ctr-pull registry.example.com/app:1", "Then: ctr run --snapshotter lamina ..."),
        ("lamina ctr-pull --namespace k8s.io IMAGE", "For pods."),
    ),
    json_keys=(("image", "its name in containerd"), ("digest", "digest of what the name means")),
    environment=(
        ("CONTAINERD_ADDRESS", "socket of containerd, when --address is not given"),
        ("CONTAINERD_NAMESPACE", "its namespace, when --namespace is not given"),
        STORE_ENVIRONMENT,
        *REGISTRY_ENVIRONMENT,
    ),
    see_also=("snapshotter",),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("image", metavar="IMAGE", help="reference of an image in a registry")
    parser.add_argument("--address", metavar="PATH", help=f"socket of containerd ({SOCKET})")
    parser.add_argument("--namespace", metavar="NAME", help="namespace of containerd (default)")
    parser.add_argument(
        "--snapshotter",
        metavar="NAME",
        default="lamina",
        help="name of Lamina's snapshotter in the configuration of containerd (%(default)s)",
    )
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Pull."""
    from lamina.cli.opening import open_request

    try:
        from lamina.containerd.pull import Client, pull
    except ImportError as error:
        raise UnsupportedError(
            "ctr-pull needs the packages 'grpcio' and 'protobuf'",
            hint="pip install 'lamina[containerd]'",
        ) from error
    client = Client(
        args.address or os.environ.get("CONTAINERD_ADDRESS") or SOCKET,
        args.namespace or os.environ.get("CONTAINERD_NAMESPACE") or "default",
        args.snapshotter,
    )
    request = open_request(args, args.image, refresh=True)
    digest = pull(request, client)
    name = str(request.where).removeprefix("docker://")
    if args.json:
        print_json({"image": name, "digest": digest})
    else:
        console.info(f"{name} is in namespace {client.namespace}")
    return 0

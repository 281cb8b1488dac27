"""``lamina snapshotter``."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import console
from lamina.cli.help_text import HelpPage
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
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.containerd.lazy_layers import Trust
    from lamina.containerd.server import Place

ROOT: Final = "/var/lib/lamina-snapshotter"
SOCKET: Final = "/run/lamina-snapshotter/snapshotter.sock"

HELP: Final = HelpPage(
    """
    Serves containerd as a snapshotter (a proxy plugin): containers of native and sealed images, and
    of ordinary ones that have an index, start while their image is still in the registry. Other
    images are unpacked as containerd's own overlayfs unpacks them.

    containerd must be told of it, and that it passes on which image a layer is of; the how-to
    "Use containerd" has the files for 1.6 and 2. Start it before containerd. The mounts belong to
    the mount service: running containers read on while this process is stopped or replaced.

    What an image's labels say is not trusted. A policy is: with --policy images that it does not
    accept are refused, and so are layers of clients that do not say which image they are of.
    containerd shares layers between images by what their configurations say, which is proven of
    native and sealed images; of an index it is not, so those of --index-from alone are used.
    """,
    examples=(
        ("lamina snapshotter", "With the paths that the how-to uses."),
        (
            "lamina snapshotter --namespace-policy k8s.io=/etc/lamina/policy.json",
            "Images of pods must be signed, those of other namespaces need not.",
        ),
        (
            "lamina snapshotter --index-from registry.example/team",
            "Ordinary images of the team that have an index start lazily.",
        ),
    ),
    json_keys=(
        ("socket", "where it answers from now on"),
        ("root", "folder of the snapshots"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    see_also=("ctr-pull", "service", "mounts"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--root",
        metavar="DIR",
        default=ROOT,
        help="folder of the snapshots, as long-lived as containerd's own root (%(default)s)",
    )
    parser.add_argument(
        "--socket", metavar="PATH", default=SOCKET, help="where containerd asks (%(default)s)"
    )
    parser.add_argument(
        "--namespace-policy",
        metavar="NAMESPACE=FILE",
        action="append",
        default=[],
        help="policy of the images of one namespace of containerd, in place of --policy; may be "
        "repeated",
    )
    parser.add_argument(
        "--index-from",
        metavar="SCOPE",
        action="append",
        default=[],
        help="believe the indexes that are attached to ordinary images of a registry or repository "
        "(HOST, HOST/PATH, *.HOST, or * for all): who can push there decides which files layers "
        "have on this node; others are unpacked. May be repeated",
    )
    add_profile_option(parser)
    add_device_option(parser)
    add_registry_options(parser)
    add_output_options(parser)


def run(args: Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from pathlib import Path

    from lamina.containerd.server import Place, serve

    trust = _trust(args)
    place = Place(Path(os.path.abspath(args.root)), os.path.abspath(args.socket), args.device)
    serve(place, trust, lambda: _tell(args, place))
    return 0


def _tell(args: Namespace, place: Place) -> None:
    import sys

    if args.json:
        print_json({"socket": place.socket, "root": str(place.root)})
        sys.stdout.flush()
    console.info(f"snapshots are served at {place.socket}")


def _trust(args: Namespace) -> Trust:
    """Return how images are opened.  Raises UsageError, and what reading a policy raises."""
    from lamina.cli.key_options import forget_passphrases, protect_process
    from lamina.cli.opening import open_request
    from lamina.containerd.lazy_layers import Trust
    from lamina.opening.request import for_another_process
    from lamina.trust.signatures.policy import load_policy

    if args.index == "always":
        raise UsageError(
            "the snapshotter indexes no images", hint="use auto, and `lamina index` beforehand"
        )
    if args.creds is not None:
        # An image can claim to be of any registry, which would get them.
        raise UsageError(
            "the snapshotter has no credentials for all registries", hint="use --authfile"
        )
    policies = {}
    for text in args.namespace_policy:
        namespace, equals, path = text.partition("=")
        if not (namespace and equals and path):
            raise UsageError(f"{text!r} is not NAMESPACE=FILE")
        policies[namespace] = os.path.abspath(path)
    template = for_another_process(open_request(args, "docker://any", start=start_rule(args)))
    if template.has_secrets:
        protect_process()
    forget_passphrases()
    for path in {*policies.values(), template.policy} - {None}:
        # Now, and not when the first pod starts.
        load_policy(str(path))
    scopes = frozenset("" if scope == "*" else scope for scope in args.index_from)
    return Trust(template, policies, scopes)

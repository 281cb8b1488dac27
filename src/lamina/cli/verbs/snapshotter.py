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
    import socket

    from lamina.containerd.lazy_layers import Trust
    from lamina.containerd.server import Place
    from lamina.opening.request import OpenRequest

ROOT: Final = "/var/lib/lamina-snapshotter"
CONFIG: Final = "/etc/containerd/config.toml"
SOCKET: Final = "/run/lamina-snapshotter/snapshotter.sock"

HELP: Final = HelpPage(
    """
    Serves containerd as a snapshotter (a proxy plugin): containers of native and sealed images, and
    of ordinary ones that have an index, start while their image is still in the registry. Other
    images are unpacked as containerd's own overlayfs unpacks them.

    containerd must be told of it, and that it passes on which image a layer is of, which
    `snapshotter install` does: it writes the settings into containerd's file, version 2 or 3, and
    keeps what was there; with --undo the file is as it was. containerd itself is asked what it
    makes of the file before it is put in place, and has to be restarted after that. Start the
    snapshotter before containerd. The mounts belong to the mount service: running containers read
    on while this process is stopped or replaced.

    What an image's labels say is not trusted. A policy is: with --policy images that it does not
    accept are refused, and so are layers of clients that do not say which image they are of.
    containerd shares layers between images by what their configurations say, which is proven of
    native and sealed images; of an index it is not, so those of --index-from alone are used.
    """,
    examples=(
        ("lamina snapshotter", "Serve, with the paths that the how-to uses."),
        (
            "lamina snapshotter install && systemctl restart containerd",
            "Have pods of this node start lazily.",
        ),
        (
            "lamina snapshotter --namespace-policy k8s.io=/etc/lamina/policy.json",
            "Images of pods must be signed, those of other namespaces need not.",
        ),
        (
            "lamina snapshotter --index-from registry.example/team",
            "Ordinary images of the team that have an index start lazily.",
        ),
        (
            "lamina snapshotter --image-service /run/containerd/containerd.sock",
            "A kubelet with --image-service-endpoint pulls by it, and pull secrets reach it.",
        ),
    ),
    json_keys=(
        ("socket", "where it answers from now on"),
        ("root", "folder of the snapshots"),
        ("config", "install: containerd's file"),
        ("containerd", "install: its version; null with --undo"),
    ),
    environment=(STORE_ENVIRONMENT, *REGISTRY_ENVIRONMENT),
    exit_codes=(("1", "install: containerd does not take the configuration"),),
    see_also=("ctr-pull", "service", "mounts"),
)


def add_arguments(parser: Parser) -> None:
    """Declare the options."""
    parser.add_argument(
        "action",
        choices=("serve", "install"),
        nargs="?",
        default="serve",
        help="what to do (serve)",
    )
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
        "--image-service",
        metavar="PATH",
        help="stand before the image service of the containerd at this socket: what a kubelet or "
        "crictl pulls by --socket is asked of it, and read with the same login",
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
    _add_install_options(parser)
    parser.add_argument(
        "--image-credential-provider-config",
        metavar="FILE",
        help="programs that are asked for credentials, which no file has: those of the kubelet's "
        "option of this name",
    )
    parser.add_argument(
        "--image-credential-provider-bin-dir", metavar="DIR", help="where those programs are"
    )
    parser.add_argument(
        "--metrics-listen",
        metavar="ADDRESS:PORT|unix:PATH",
        help="answer Prometheus here (/metrics), without asking who asks: of the snapshotter, of "
        "the mount service and of the node store. It needs the extra `metrics`",
    )
    add_profile_option(parser)
    add_device_option(parser)
    add_registry_options(parser)
    add_output_options(parser)


def _add_install_options(parser: Parser) -> None:
    group = parser.add_argument_group("Options of install")
    group.add_argument(
        "--containerd",
        metavar="FILE",
        nargs="?",
        const=CONFIG,
        default=CONFIG,
        help=f"containerd's configuration ({CONFIG})",
    )
    group.add_argument(
        "--containerd-program",
        metavar="PATH",
        default="containerd",
        help="the program whose configuration it is (%(default)s)",
    )
    group.add_argument(
        "--undo", action="store_true", help="take the settings out again, to the last byte"
    )


def run(args: Namespace) -> int:
    """Serve until SIGTERM or SIGINT, or install."""
    from pathlib import Path

    if args.action == "install":
        return _install(args)
    if args.undo:
        raise UsageError("--undo is of `lamina snapshotter install`")

    from lamina.containerd.server import Place, serve

    containerd = None
    if args.image_service is not None:
        _keep_secrets()
        containerd = os.path.abspath(args.image_service)
    trust, metrics = _trust(args), _listen_for_metrics(args.metrics_listen)
    root, path = Path(os.path.abspath(args.root)), os.path.abspath(args.socket)
    place = Place(root, path, args.device, containerd, metrics)
    serve(place, trust, lambda: _tell(args, place))
    return 0


def _keep_secrets() -> None:
    """Be a process whose memory is overwritten when it is freed, and that nobody dumps."""
    from lamina.cli.key_options import protect_process
    from lamina.posix.wiping_memory import free_by_overwriting

    free_by_overwriting()
    protect_process()


def _listen_for_metrics(where: str | None) -> socket.socket | None:
    """Return a listening socket.  Raises UsageError, UnsupportedError and OSError."""
    if where is None:
        return None
    from lamina.cli.broker_serving import listen_address
    from lamina.serve.metrics import require_client
    from lamina.serve.nbd.listening import listen_tcp, listen_unix

    require_client()
    if where.startswith("unix:"):
        return listen_unix(os.path.abspath(where.removeprefix("unix:")))
    # Whoever names an address of the network means it: the page has no secrets.
    return listen_tcp(*listen_address(where), is_guarded=True)


def _install(args: Namespace) -> int:
    from pathlib import Path

    from lamina.containerd import node_config

    config, socket = Path(os.path.abspath(args.containerd)), os.path.abspath(args.socket)
    node = node_config.Node(config, args.containerd_program, socket)
    version = None
    if not args.undo:
        version = node_config.install(node)
        console.info(f"{config} has lamina, as containerd {version} understands it: restart it")
    elif node_config.undo(node):
        console.info(f"{config} is as it was: restart containerd")
    else:
        console.info(f"{config} has nothing that was installed")
    if args.json:
        print_json({"config": str(config), "containerd": version})
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
    request = open_request(args, "docker://any", start=start_rule(args))
    template = for_another_process(_with_providers(args, request))
    if template.has_secrets:
        protect_process()
    forget_passphrases()
    for path in {*policies.values(), template.policy} - {None}:
        # Now, and not when the first pod starts.
        load_policy(str(path))
    scopes = frozenset("" if scope == "*" else scope for scope in args.index_from)
    return Trust(template, policies, scopes)


def _with_providers(args: Namespace, request: OpenRequest) -> OpenRequest:
    """Return a request with a kubelet's programs for credentials.  Raises UsageError, and what
    reading their configuration raises.
    """
    import dataclasses

    import msgspec

    from lamina.registry.credential_providers import providers_of

    config, folder = args.image_credential_provider_config, args.image_credential_provider_bin_dir
    if config is None and folder is None:
        return request
    if config is None or folder is None:
        raise UsageError(
            "--image-credential-provider-config and --image-credential-provider-bin-dir go together"
        )
    providers = (os.path.abspath(config), os.path.abspath(folder))
    # Now, and not when the first pod starts.
    providers_of(*providers)
    client = dataclasses.replace(request.client, credential_providers=providers)
    return msgspec.structs.replace(request, client=client)

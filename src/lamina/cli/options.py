"""The options that verbs share, declared once so that they read the same everywhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.cli.parser import Parser
    from lamina.http.client_options import ClientOptions

OUTPUT_TITLE: Final = "Output options"
INDEX_USES: Final = ("auto", "always", "never")
PULL_USES: Final = ("newer", "missing", "always", "never")
REGISTRY_TITLE: Final = "Registry options"
TRUST_TITLE: Final = "Trust options"

_CREDENTIALS_HELP: Final = (
    "credentials for the registry; without a password it is asked for, or read from standard "
    "input if that is no terminal"
)
STORE_ENVIRONMENT: Final = (
    "LAMINA_STORE",
    (
        "folder of the node store when --store is not given (/var/lib/lamina for root); "
        "LAMINA_STORE_BUDGET stands for --store-budget"
    ),
)
REGISTRY_ENVIRONMENT: Final = (
    (
        "REGISTRY_AUTH_FILE, DOCKER_CONFIG",
        "where the credentials of registries are, when --authfile is not given",
    ),
    (
        "LAMINA_HOSTS_DIR",
        "folders of mirrors, divided by colons, when --hosts-dir is not given",
    ),
    ("HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "proxies of the registries"),
)


def add_output_options(
    parser: Parser,
    *,
    short_verbose: bool = True,
    short_help: bool = True,
    short_quiet: bool = True,
    json: bool = True,
) -> None:
    """``--json``, ``--quiet``, ``--verbose``, ``--log-format``, ``--help``; for every verb."""
    group = parser.add_argument_group(OUTPUT_TITLE)
    if json:
        group.add_argument(
            "--json", action="store_true", help="print JSON on standard output, one object a line"
        )
    quiet = ("-q", "--quiet") if short_quiet else ("--quiet",)
    group.add_argument(*quiet, action="store_true", help="say nothing on standard error but errors")
    names = ("-v", "--verbose") if short_verbose else ("--verbose",)
    group.add_argument(
        *names, action="count", default=0, help="say more on standard error; twice for debugging"
    )
    group.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        metavar="text|json",
        help="form of the lines on standard error",
    )
    spellings = ("-h", "--help") if short_help else ("--help",)
    group.add_argument(*spellings, action="help", help="show this page")


def add_store_option(parser: Parser | argparse._ArgumentGroup) -> None:
    """``--store DIR`` and ``--store-budget SIZE``."""
    parser.add_argument(
        "--store",
        metavar="DIR",
        help="folder of the node store, which keeps what was fetched and verified",
    )
    parser.add_argument(
        "--store-budget",
        metavar="SIZE",
        help="how much the node store may take, as 20G or 80%% of the disk; what was not read for "
        "longest is evicted for it",
    )


def add_device_option(parser: Parser) -> None:
    """``--device``."""
    from lamina.serve.devices import AUTO, device_names

    parser.add_argument(
        "--device",
        choices=(AUTO, *device_names()),
        default=AUTO,
        metavar="DEVICE",
        help="how the kernel gets at the bytes: fuse-blob (Linux 6.12, root), fanotify (Linux "
        "6.14, root), fuse (any), or auto: fuse-blob where it works, else fuse",
    )


def add_registry_options(parser: Parser, *, always_pulls: bool = False) -> None:
    """Add how to reach and trust registries, ``--index`` and ``--pull``: for verbs that open an
    image; not ``--pull`` for one that always asks.
    """
    group = parser.add_argument_group(REGISTRY_TITLE)
    _add_platform_option(group, many=False)
    group.add_argument("--creds", metavar="USER[:PASSWORD]", help=_CREDENTIALS_HELP)
    _add_client_options(group)
    group.add_argument(
        "--index",
        choices=INDEX_USES,
        default="auto",
        metavar="auto|always|never",
        help="of an ordinary image: open it by the index that is attached to it (auto), never, "
        "or always, which pulls and indexes an image that has none",
    )
    if always_pulls:
        parser.set_defaults(pull="always")
    else:
        _add_pull_option(group)
    group.add_argument(
        "--blob-dir",
        metavar="DIR",
        action="append",
        default=[],
        help="folder of blobs by digest, such as a content store of containerd or the blobs of an "
        "OCI layout, that is asked before the registry; can be given more than once",
    )
    add_store_option(group)
    add_trust_options(parser)


def _add_pull_option(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pull",
        choices=PULL_USES,
        default="newer",
        metavar="newer|missing|always|never",
        help="what a tag means: ask the registry for three seconds, then take what is known on "
        "this node (newer); ask only if nothing is known; insist on an answer; or never ask",
    )


def add_trust_options(parser: Parser) -> None:
    """``--decryption-key``, ``--policy`` and key brokers, for verbs that open an image."""
    from lamina.cli.broker_options import add_broker_options
    from lamina.cli.key_options import add_decryption_key_option

    group = parser.add_argument_group(TRUST_TITLE)
    add_decryption_key_option(group)
    group.add_argument(
        "--policy",
        metavar="FILE",
        help="policy.json whose demands are proven before anything of the image is read",
    )
    group.add_argument(
        "--allow-older",
        action="store_true",
        help="with --policy: take an image that is signed for an older release than one that was "
        "used here under the same name, and count from it from now on",
    )
    add_broker_options(parser)


def add_attaching_registry_options(parser: Parser) -> None:
    """Add the options of registries to a verb that reads some platforms of an image and adds to
    it.
    """
    group = parser.add_argument_group(REGISTRY_TITLE)
    _add_platform_option(group, many=True)
    group.add_argument("--creds", metavar="USER[:PASSWORD]", help=_CREDENTIALS_HELP)
    _add_client_options(group)


def add_signing_registry_options(parser: Parser) -> None:
    """Add the options of registries to verbs that take all platforms of a reference together."""
    group = parser.add_argument_group(REGISTRY_TITLE)
    group.add_argument("--creds", metavar="USER[:PASSWORD]", help=_CREDENTIALS_HELP)
    _add_client_options(group)


def add_pair_options(parser: Parser, *, many_platforms: bool) -> None:
    """Add the options of registries, twice, to verbs that read one image and write another."""
    group = parser.add_argument_group(REGISTRY_TITLE)
    _add_platform_option(group, many=many_platforms)
    group.add_argument("--creds", metavar="USER[:PASSWORD]", help=_CREDENTIALS_HELP)
    group.add_argument(
        "--src-creds", metavar="USER[:PASSWORD]", help="credentials for SRC alone, as --creds"
    )
    group.add_argument(
        "--dst-creds",
        "--dest-creds",
        metavar="USER[:PASSWORD]",
        help="credentials for DST alone, as --creds",
    )
    _add_client_options(group)


def _add_platform_option(group: argparse._ArgumentGroup, *, many: bool) -> None:
    group.add_argument(
        "--platform",
        metavar="OS/ARCH",
        type=platform_name,
        action="append" if many else "store",
        default=[] if many else None,
        help="which platform of a multi-platform image, as linux/arm/v7"
        + ("; may be repeated (all)" if many else " (this machine's)"),
    )


def _add_client_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--authfile", metavar="FILE", help="credentials in the form of docker's config.json"
    )
    group.add_argument(
        "--ca-file", metavar="FILE", help="PEM file of certificate authorities to trust"
    )
    group.add_argument(
        "--hosts-dir",
        metavar="DIR",
        action="append",
        help="folder that names the mirrors of registries in HOST/hosts.toml, as containerd's "
        "/etc/containerd/certs.d; can be given more than once",
    )
    group.add_argument(
        "--plain-http",
        action="store_true",
        help="speak HTTP without TLS to registries that are not on this machine",
    )
    group.add_argument(
        "--no-tls-verify",
        dest="tls_verify",
        action="store_false",
        help="accept any certificate; image digests are verified all the same",
    )


def platform_name(text: str) -> str:
    """Check ``OS/ARCH`` or ``OS/ARCH/VARIANT``."""
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(part.isalnum() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a platform like linux/amd64")
    return text


def split_credentials(text: str) -> tuple[str, str]:
    """``USER:PASSWORD`` → both; the password is asked for where it is missing."""
    user, colon, password = text.partition(":")
    if not user:
        raise UsageError(
            "--creds has no user name", hint="write --creds USER or --creds USER:PASSWORD"
        )
    return user, password if colon else _ask_password(user)


def ask_credentials(args: argparse.Namespace) -> None:
    """Complete ``--creds``: a process that serves in the background has no terminal to ask on."""
    if args.creds is not None:
        args.creds = ":".join(split_credentials(args.creds))


def _ask_password(user: str) -> str:
    import sys

    if sys.stdin.isatty():
        import getpass

        return getpass.getpass(f"Password of {user}: ")
    return sys.stdin.readline().rstrip("\r\n")


def client_options(args: argparse.Namespace, creds: str | None = None) -> ClientOptions:
    """Return the registry client's options that the command line asks for; ``creds`` overrides
    ``--creds``.
    """
    from lamina.http.client_options import ClientOptions

    if creds is None:
        # Once, however many clients there are.
        ask_credentials(args)
        creds = args.creds
    username, password = split_credentials(creds) if creds is not None else (None, None)
    return ClientOptions(
        plain_http=True if args.plain_http else None,
        ca_file=args.ca_file,
        verify_tls=args.tls_verify,
        authfile=args.authfile,
        username=username,
        password=password,
        hosts_dirs=None if args.hosts_dir is None else tuple(args.hosts_dir),
    )


def pair_options(args: argparse.Namespace) -> tuple[ClientOptions, ClientOptions]:
    """Return the registry client's options for SRC and for DST."""
    return client_options(args, args.src_creds), client_options(args, args.dst_creds)


def byte_size(text: str) -> int:
    """``128K``, ``1M``, ``65536``: binary units."""
    units = {"K": 10, "M": 20, "G": 30}
    number, shift = text.upper().removesuffix("IB"), 0
    if number[-1:] in units:
        number, shift = number[:-1], units[number[-1]]
    if not (number.isascii() and number.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 128K or 1M")
    return int(number) << shift

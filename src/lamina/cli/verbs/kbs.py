"""``lamina kbs``."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any, Final

from lamina.cli import console
from lamina.cli.broker_options import (
    STORE_PASSWORD_ENVIRONMENT,
    add_broker_options,
    broker_provider,
    store_passphrase,
)
from lamina.cli.help_text import HelpPage
from lamina.cli.key_options import protect_process, write_new
from lamina.cli.options import add_output_options
from lamina.cli.output import print_bytes, print_json, print_line
from lamina.cli.parser import Parser
from lamina.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from lamina.kbs.key_store import Entry, KeyStore
    from lamina.kbs.rules import Rule
    from lamina.trust.broker.kbs_packet import ResourcePath

HELP: Final = HelpPage(
    """
    A small key broker for development and tests, which speaks the KBS protocol of trustee: guests
    attest themselves and then get keys, each by a rule of its own.

    init makes DIR with an empty, encrypted key store and a certificate for --listen and --name;
    hand ca.crt to the guests. put reads a value from standard input (or --value-file) and keeps it
    under RESOURCE; --random makes 32 bytes instead. policy sets or shows the rule of a resource:
    without a rule nobody gets it. remove forgets a resource. list shows names and rules, never
    values. serve answers guests until it is ended, and notices what the other actions change. Each
    decision is a line in DIR/audit.jsonl.

    key-provider is no part of the broker: it answers one request of ocicrypt's key provider
    protocol on standard input by asking the broker at --kbs, so that skopeo can use it as a
    program.

    The broker verifies sample evidence only, which proves nothing about a machine. It needs no
    privileges: run it as a user of its own, on a machine that the guests' host cannot read.
    """,
    examples=(
        ("lamina kbs init --dir broker", "Make a broker for 127.0.0.1."),
        ("lamina kbs put --dir broker team/kek/7 --random", "Make a key."),
        (
            "lamina kbs policy --dir broker team/kek/7 --measurement abcde --min-release 7",
            "Give it to guests of one measurement, for images of release 7 and later.",
        ),
        ("lamina kbs serve --dir broker", "Serve on 127.0.0.1:8443."),
    ),
    json_keys=(
        ("resource", "kbs:///REPOSITORY/TYPE/TAG (put, policy, remove, list: one object each)"),
        ("rule", "tees, measurements, images, minimum_release; null gives the key to nobody"),
        ("ca, certificate, key, store", "paths of the files that were written (init)"),
        ("url", "where the broker can be reached from now on (serve)"),
    ),
    environment=(STORE_PASSWORD_ENVIRONMENT,),
    see_also=("encrypt", "decrypt"),
)
_ACTIONS: Final = ("init", "serve", "put", "list", "policy", "remove", "key-provider")
_DEFAULT_LISTEN: Final = "127.0.0.1:8443"


def add_arguments(parser: Parser) -> None:
    """Declare the options and arguments."""
    parser.add_argument("action", choices=_ACTIONS, help="what to do")
    parser.add_argument(
        "resource",
        metavar="RESOURCE",
        nargs="?",
        help="put, policy, remove: REPOSITORY/TYPE/TAG, with or without kbs:/// before it",
    )
    parser.add_argument("--dir", metavar="DIR", default="kbs", help="folder of the broker (./kbs)")
    parser.add_argument(
        "--passphrase-file", metavar="FILE", help="first line is the passphrase of the key store"
    )
    parser.add_argument(
        "--passphrase-fd",
        metavar="N",
        type=int,
        help="the same from file descriptor N, which no list of processes shows",
    )
    _add_serving(parser)
    _add_values(parser)
    _add_rule(parser)
    add_broker_options(parser)
    add_output_options(parser)


def _add_serving(parser: Parser) -> None:
    group = parser.add_argument_group("Options of init and serve")
    group.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=_DEFAULT_LISTEN,
        help="where to serve; port 0 takes any (%(default)s)",
    )
    group.add_argument(
        "--name",
        metavar="NAME",
        action="append",
        default=[],
        help="init: one more name or address in the certificate; may be repeated",
    )
    group.add_argument(
        "--tls-cert", metavar="FILE", help="serve: certificate chain in PEM (DIR/tls.crt)"
    )
    group.add_argument("--tls-key", metavar="FILE", help="serve: its private key (DIR/tls.key)")
    group.add_argument(
        "--session-time",
        metavar="SECONDS",
        type=float,
        default=300.0,
        help="serve: how long an attestation lasts (%(default)s)",
    )


def _add_values(parser: Parser) -> None:
    group = parser.add_argument_group("Options of put")
    group.add_argument("--value-file", metavar="FILE", help="read the value from FILE")
    group.add_argument("--random", action="store_true", help="make a key of 32 random bytes")
    group.add_argument(
        "--replace", action="store_true", help="replace the value that the resource has already"
    )


def _add_rule(parser: Parser) -> None:
    group = parser.add_argument_group("Options of put and policy")
    for name, metavar, text in (
        ("--measurement", "TEXT", "measurement of a guest that may have it"),
        ("--image-digest", "DIGEST", "manifest digest of an image that it is for"),
        ("--tee", "NAME", "kind of machine that may have it, as sample"),
    ):
        group.add_argument(
            name, metavar=metavar, action="append", default=[], help=f"{text}; may be repeated"
        )
    group.add_argument(
        "--min-release", metavar="N", type=int, default=0, help="lowest release that it is for"
    )
    group.add_argument("--anybody", action="store_true", help="every attested guest may have it")
    group.add_argument("--nobody", action="store_true", help="nobody may have it any more")


def run(args: Namespace) -> int:
    """Do the action."""
    protect_process()
    if args.action == "key-provider":
        return _answer_key_provider(args)
    if args.action == "init":
        return _init(args)
    if args.action == "serve":
        from lamina.cli.broker_serving import serve

        return serve(args)
    from lamina.kbs.key_store import KeyStore
    from lamina.trust.broker.kbs_packet import parse_resource

    if args.action != "list" and not args.resource:
        raise UsageError(f"{args.action} needs a RESOURCE", hint="REPOSITORY/TYPE/TAG")
    store = KeyStore.open(args.dir, store_passphrase(args))
    if args.action == "list":
        for resource, entry in sorted(store.entries.items()):
            _show(args, resource, entry.rule)
        return 0
    text = args.resource
    resource = parse_resource(text if text.startswith("kbs:") else f"kbs:///{text}")
    actions = {"put": _put, "policy": _policy, "remove": _remove}
    actions[args.action](args, store, resource)
    return 0


def _show(args: Namespace, resource: ResourcePath, rule: Rule | None) -> None:
    if args.json:
        print_json({"resource": str(resource), "rule": rule.encode() if rule else None})
        return
    print_line(f"{resource}  {rule.describe() if rule else 'nobody'}")


def _put(args: Namespace, store: KeyStore, resource: ResourcePath) -> None:
    from lamina.kbs.key_store import Entry

    value, rule = _value(args), _rule(args)

    def add(old: Entry | None) -> Entry:
        if old is not None and not args.replace:
            raise UsageError(f"there is a {resource} already", hint="--replace replaces its value")
        if old is not None and rule is None and not args.nobody:
            return Entry(value, old.rule)
        return Entry(value, rule)

    store.change(resource, add)
    _show(args, resource, store.entries[resource].rule)


def _policy(args: Namespace, store: KeyStore, resource: ResourcePath) -> None:
    rule = _rule(args)

    def change(old: Entry | None) -> Entry:
        if old is None:
            raise _absent(resource)
        return old._replace(rule=None if args.nobody else rule)

    if rule is not None or args.nobody:
        store.change(resource, change)
    elif resource not in store.entries:
        raise _absent(resource)
    _show(args, resource, store.entries[resource].rule)


def _remove(args: Namespace, store: KeyStore, resource: ResourcePath) -> None:
    if resource not in store.entries:
        raise _absent(resource)
    store.change(resource, lambda _: None)
    if args.json:
        print_json({"resource": str(resource), "rule": None})


def _absent(resource: ResourcePath) -> NotFoundError:
    return NotFoundError(f"there is no {resource} in the key store")


def _value(args: Namespace) -> Any:
    from lamina.trust.broker.protocol import MAX_RESOURCE_BYTES
    from lamina.trust.crypto.keys import read_key_file
    from lamina.trust.crypto.secret import Secret

    if args.random:
        return Secret(os.urandom(32))
    if args.value_file:
        return Secret(read_key_file(args.value_file, private=True))
    return Secret(sys.stdin.buffer.read(MAX_RESOURCE_BYTES + 1))


def _rule(args: Namespace) -> Rule | None:
    """Return the rule that the options make, None if there are none of them."""
    from lamina.kbs.rules import Rule
    from lamina.oci.reference import is_digest

    lists = (args.tee, args.measurement, args.image_digest)
    demands = any(lists) or args.min_release
    if args.nobody + args.anybody + bool(demands) > 1 or args.min_release < 0:
        raise UsageError("a rule is either --anybody, --nobody or what guests have to meet")
    for digest in args.image_digest:
        if not is_digest(digest):
            raise UsageError(f"{digest[:200]!r} is no digest", hint="write sha256:HEX")
    if not demands and not args.anybody:
        return None
    tees, measurements, images = (tuple(texts) for texts in lists)
    return Rule(tees, measurements, images, args.min_release)


def _init(args: Namespace) -> int:
    from lamina.cli.broker_serving import listen_address
    from lamina.kbs.certificate import make_certificates
    from lamina.kbs.key_store import KeyStore

    host, _ = listen_address(args.listen)
    names = {"ca": "ca.crt", "certificate": "tls.crt", "key": "tls.key"}
    paths = {kind: os.path.join(args.dir, name) for kind, name in names.items()}
    for path in filter(os.path.lexists, paths.values()):
        raise UsageError(f"{path} is there already", hint="choose another folder, or move it")
    passphrase = store_passphrase(args, twice=True)
    made = make_certificates([host, *args.name])
    store = KeyStore.create(args.dir, passphrase)
    for path, data, mode in zip(paths.values(), made, (0o644, 0o644, 0o600), strict=True):
        write_new(path, data, mode)
    if args.json:
        print_json({**paths, "store": store.path})
    else:
        console.info(f"made {store.path}; guests need {paths['ca']}")
    return 0


def _answer_key_provider(args: Namespace) -> int:
    from lamina.trust.broker.provider import MAX_REQUEST_BYTES, answer_request

    provider = broker_provider(args)
    if provider is None:
        raise UsageError("key-provider needs the address of the broker", hint="--kbs URL")
    print_bytes(answer_request(provider, sys.stdin.buffer.read(MAX_REQUEST_BYTES + 1)))
    return 0

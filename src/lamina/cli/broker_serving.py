"""Serving a key broker from the command line."""

from __future__ import annotations

import os
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from lamina.cli import console
from lamina.cli.broker_options import store_passphrase
from lamina.cli.end_signals import held_end_signals
from lamina.cli.output import print_json
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.kbs.server import BrokerServer


def listen_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[ADDRESS]:PORT`` → both.  Raises UsageError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdecimal()) or int(port[:6]) > 0xFFFF:
        raise UsageError(f"{text[:200]!r} is not HOST:PORT")
    return host, int(port)


def serve(args: Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from lamina.kbs.audit import AuditLog
    from lamina.kbs.broker import Broker
    from lamina.kbs.key_store import KeyStore
    from lamina.kbs.server import BrokerServer, server_context
    from lamina.kbs.sessions import Sessions

    address = listen_address(args.listen)
    certificate = args.tls_cert or os.path.join(args.dir, "tls.crt")
    key = args.tls_key or os.path.join(args.dir, "tls.key")
    if not 0 < args.session_time <= 86400:
        raise UsageError("--session-time is between 0 and 86400 seconds")
    store = KeyStore.open(args.dir, store_passphrase(args))
    context = server_context(certificate, key)
    audit_path = os.path.join(args.dir, "audit.jsonl")
    with AuditLog(audit_path) as audit:
        broker = Broker(store, audit, Sessions(args.session_time))
        with held_end_signals() as wait, BrokerServer(address, broker, context) as server:
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            url = f"https://{host}:{server.server_address[1]}"
            _announce(args, url)
            _run_until_signal(server, wait)
    return 0


def _announce(args: Namespace, url: str) -> None:
    if args.json:
        print_json({"url": url})
        sys.stdout.flush()
    console.info(f"serving keys on {url}")
    console.warning(
        "sample evidence is believed, which proves nothing: for development and tests only"
    )


def _run_until_signal(server: BrokerServer, wait: Callable[[], None]) -> None:
    """Wait for a signal while the server works in a thread."""
    thread = threading.Thread(target=server.run, name="key broker")
    thread.start()
    wait()
    server.shutdown()
    thread.join()

"""Serving a key broker from the command line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from argparse import Namespace
from typing import TYPE_CHECKING, Final

from lamina.cli import story
from lamina.cli.broker_options import store_passphrase
from lamina.cli.output import print_json
from lamina.errors import UsageError

if TYPE_CHECKING:
    from lamina.trust.kbs.server import BrokerServer

_END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def listen_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[ADDRESS]:PORT`` → both.  Raises UsageError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdecimal()) or int(port[:6]) > 0xFFFF:
        raise UsageError(f"{text[:200]!r} is not HOST:PORT")
    return host, int(port)


def serve(args: Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from lamina.trust.kbs.audit import AuditLog
    from lamina.trust.kbs.broker import Broker
    from lamina.trust.kbs.key_store import KeyStore
    from lamina.trust.kbs.server import BrokerServer, server_context
    from lamina.trust.kbs.sessions import Sessions

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
        with BrokerServer(address, broker, context) as server:
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            url = f"https://{host}:{server.server_address[1]}"
            # Before anybody knows the address: a signal must not find the server without a waiter.
            signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
            _announce(args, url)
            _run_until_signal(server)
    return 0


def _announce(args: Namespace, url: str) -> None:
    if args.json:
        print_json({"url": url})
        sys.stdout.flush()
    story.tell(f"serving keys on {url}")
    story.warn("sample evidence is believed, which proves nothing: for development and tests only")


def _run_until_signal(server: BrokerServer) -> None:
    """The server works in a thread; this one waits for a signal."""
    thread = threading.Thread(target=server.run, name="key broker")
    thread.start()
    signal.sigwait(_END_SIGNALS)
    server.shutdown()
    thread.join()

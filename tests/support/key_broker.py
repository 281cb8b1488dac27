"""A key broker on loopback in this process, and clients for it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.kbs.audit import AuditLog
from lamina.kbs.broker import Broker
from lamina.kbs.certificate import make_certificates
from lamina.kbs.key_store import Entry, KeyStore
from lamina.kbs.rules import Rule
from lamina.kbs.server import BrokerServer, server_context
from lamina.kbs.sessions import Sessions
from lamina.trust.broker.client import KbsClient
from lamina.trust.broker.connection import parse_endpoint
from lamina.trust.broker.evidence import EvidenceSource, SampleEvidence
from lamina.trust.broker.kbs_packet import parse_resource
from lamina.trust.crypto.secret import Secret

PASSPHRASE = b"store passphrase"
ANYBODY = Rule()


@dataclass(slots=True)
class RunningBroker:
    """A broker that serves, and where its things are."""

    broker: Broker
    url: str
    ca_file: Path
    audit_file: Path

    def put(self, uri: str, value: bytes, rule: Rule | None = ANYBODY) -> None:
        self.broker.store.change(parse_resource(uri), lambda _: Entry(Secret(value), rule))

    def client(self, evidence: EvidenceSource | None = None) -> KbsClient:
        endpoint = parse_endpoint(self.url, str(self.ca_file), 10)
        return KbsClient(endpoint, evidence or SampleEvidence())

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit_file.read_text().splitlines()]


@contextlib.contextmanager
def running_broker(
    folder: Path,
    *,
    lifetime_s: float = 300.0,
    names: Sequence[str] = ("127.0.0.1",),
    valid_days: int = 10,
) -> Iterator[RunningBroker]:
    """A broker with an empty store, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    made = make_certificates(names, valid_days)
    paths = []
    for name, data in zip(("ca.crt", "tls.crt", "tls.key"), made, strict=True):
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    store = KeyStore.create(str(folder / "store"), Secret(PASSPHRASE))
    with AuditLog(str(folder / "audit.jsonl")) as audit:
        broker = Broker(store, audit, Sessions(lifetime_s))
        context = server_context(str(paths[1]), str(paths[2]))
        with BrokerServer(("127.0.0.1", 0), broker, context) as server:
            thread = threading.Thread(target=server.run)
            thread.start()
            try:
                port = server.server_address[1]
                url = f"https://127.0.0.1:{port}"
                yield RunningBroker(broker, url, paths[0], folder / "audit.jsonl")
            finally:
                server.shutdown()
                thread.join()

"""What reaches a guest's agent and the host's cache: calls, requests, init-data, policies.

The first byte chooses the parser; each ends in a value or an error of the family.
"""

from __future__ import annotations

import contextlib

from lamina.errors import Error
from lamina.guest.anchors import parse_anchors
from lamina.guest.policy_keys import with_keys_inside
from lamina.serve.cache.protocol import parse_range, parse_target
from lamina.trust.broker.init_data import InitData
from lamina.wire import ttrpc

SIZE_BYTES = 1000


def call(data: bytes) -> None:
    found = ttrpc.parse_call(data)
    ttrpc.texts(found.payload, 1, 2)


def request(data: bytes) -> None:
    text = data.decode("latin-1")
    question = parse_target(text)
    if question is not None:
        assert not set("/?#\n") & set(question.which)
    wanted = parse_range(text, SIZE_BYTES)
    assert wanted is None or 0 <= wanted[0] < wanted[1] <= SIZE_BYTES


def init_data(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    anchors = parse_anchors(InitData.parse(text, "init-data"))
    assert anchors.broker_url.startswith("https://")
    assert anchors.policy and anchors.broker_authority


def hub(data: bytes) -> None:
    text = data.decode("utf-8", "replace").replace("'''", "")
    head = "version = '0.1.0'\nalgorithm = 'sha256'\n[data]\n\"cdh.toml\" = '''\n"
    init_data(f"{head}{text}'''\n".encode())


def policy(data: bytes) -> None:
    found = with_keys_inside(data, lambda resource: str(resource).encode())
    assert b'"keyPath":' not in found


PARSERS = (call, request, init_data, hub, policy)


def target(data: bytes) -> None:
    """Give the bytes to a parser."""
    if data:
        with contextlib.suppress(Error):
            PARSERS[data[0] % len(PARSERS)](data[1:])


def seeds() -> list[bytes]:
    """One of each kind that is right."""
    pull = ttrpc.encode_bytes(1, b"registry.example/app:1") + ttrpc.encode_bytes(2, b"/run/bundle")
    message = ttrpc.encode_bytes(1, b"api.ImagePullService") + ttrpc.encode_bytes(2, b"PullImage")
    anchors = b"[kbc]\nurl = 'https://a:1'\nkbs_cert = 'P'\n"
    anchors += b"[image]\nimage_security_policy = '{}'\n"
    head = b"version = '0.1.0'\nalgorithm = 'sha256'\n[data]\n"
    return [
        b"\0" + message + ttrpc.encode_bytes(3, pull) + b"\x20\x05",
        b"\1/v2/team/app/blobs/sha256:" + b"a" * 64 + b"?ns=localhost:5000",
        b"\1bytes=10-20",
        b"\2" + head + b"\"cdh.toml\" = '''\n" + anchors + b"'''\n",
        b"\3" + anchors,
        b'\4{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"}]}',
    ]

"""The broker's encrypted store, its rules, and its certificate."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import (
    Error,
    FormatError,
    NotFoundError,
    StoreError,
    TrustError,
    UsageError,
)
from lamina.kbs.audit import AuditLog
from lamina.kbs.certificate import make_certificates
from lamina.kbs.key_store import Entry, KeyStore
from lamina.kbs.rules import Rule
from lamina.kbs.server import server_context
from lamina.trust.broker.kbs_packet import ResourcePath
from lamina.trust.crypto.secret import Secret

NAME = ResourcePath("a", "key", "1")
PASSPHRASE = Secret(b"tea")
RULE = Rule(("sample",), ("m1",), ("sha256:" + "ab" * 32,), 7)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    store = KeyStore.create(str(tmp_path / "store"), PASSPHRASE)
    store.change(NAME, lambda _: Entry(Secret(b"unmistakable"), RULE))
    return store


def test_round_trip(store: KeyStore) -> None:
    again = KeyStore.open(store.folder, PASSPHRASE)
    assert again.entries == {NAME: Entry(Secret(b"unmistakable"), RULE)}
    data = Path(store.path).read_bytes()
    for text in (b"unmistakable", base64.b64encode(b"unmistakable"), b"key/1", b'm1"'):
        assert text not in data
    assert Path(store.path).stat().st_mode & 0o777 == 0o600
    assert Path(store.folder).stat().st_mode & 0o777 == 0o700
    assert "unmistakable" not in repr(again)
    assert "unmistakable" not in repr(again.entries)


def test_one_writer_sees_the_other(store: KeyStore) -> None:
    other = KeyStore.open(store.folder, PASSPHRASE)
    second = NAME._replace(tag="2")
    other.change(second, lambda _: Entry(Secret(b"x"), None))
    assert set(store.entries) == {NAME, second}
    store.change(NAME, lambda _: None)
    assert set(other.entries) == {second}


def test_passphrases(store: KeyStore, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="with this passphrase"):
        KeyStore.open(store.folder, Secret(b"coffee"))
    with pytest.raises(UsageError, match="already"):
        KeyStore.create(store.folder, PASSPHRASE)
    with pytest.raises(UsageError, match="empty"):
        KeyStore.create(str(tmp_path / "other"), Secret(b""))
    with pytest.raises(NotFoundError):
        KeyStore.open(str(tmp_path / "other"), PASSPHRASE)


def test_a_changed_store(store: KeyStore) -> None:
    path = Path(store.path)
    good = json.loads(path.read_bytes())
    sealed = bytearray(base64.b64decode(good["ciphertext"]))
    sealed[5] ^= 1
    weak = {"name": "scrypt", "params": {"N": 2, "r": 8, "p": 1}, "salt": good["kdf"]["salt"]}
    for change in (
        {"ciphertext": base64.b64encode(sealed).decode()},
        {"kdf": weak},
        {"cipher": {"name": "AES-256-GCM", "nonce": "AAAA"}},
        {"format": "lamina-kbs-store/0"},
        {"more": 1},
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises((TrustError, FormatError)):
            KeyStore.open(store.folder, PASSPHRASE)
        with pytest.raises(Error):
            store.entries  # noqa: B018
    path.write_text(json.dumps(good))
    path.chmod(0o644)
    with pytest.raises(TrustError, match="other users"):
        KeyStore.open(store.folder, PASSPHRASE)


def test_another_store_in_its_place(store: KeyStore, tmp_path: Path) -> None:
    other = KeyStore.create(str(tmp_path / "other"), PASSPHRASE)
    os.replace(other.path, store.path)
    with pytest.raises(TrustError, match="replaced by another"):
        store.entries  # noqa: B018


@pytest.mark.parametrize("size", [0, 65537])
def test_sizes_of_values(store: KeyStore, size: int) -> None:
    with pytest.raises(UsageError, match="bytes"):
        store.change(NAME, lambda _: Entry(Secret(b"x" * size), None))
    assert store.entries[NAME].value == Secret(b"unmistakable")


@pytest.mark.parametrize(
    "change",
    [
        {"tees": "sample"}, {"measurements": [5]}, {"images": ["abc"]}, {"minimum_release": -1},
        {"minimum_release": True}, {"more": 1}, {"tees": [""]}, {"tees": ["x" * 2000]},
    ],
)  # fmt: skip
def test_broken_rules(change: dict[str, Any]) -> None:
    assert Rule.decode(RULE.encode(), "rule") == RULE
    with pytest.raises(FormatError):
        Rule.decode({**RULE.encode(), **change}, "rule")


def test_the_audit_log(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    with AuditLog(str(path)) as log:
        log.write("event", text="x" * 1000 + "\n", number=5)
        log.close()
        with pytest.raises(StoreError):
            log.write("event")
    (line,) = path.read_text().splitlines()
    assert len(json.loads(line)["text"]) == 300
    with pytest.raises(StoreError):
        AuditLog(str(tmp_path / "no" / "audit"))


def test_certificates(tmp_path: Path) -> None:
    made = make_certificates(["127.0.0.1", "::1", "broker.example"])
    for name, data in zip(("ca", "crt", "key"), made, strict=True):
        (tmp_path / name).write_bytes(data)
    assert server_context(str(tmp_path / "crt"), str(tmp_path / "key"))
    with pytest.raises(UsageError, match="cannot use"):
        server_context(str(tmp_path / "ca"), str(tmp_path / "key"))
    with pytest.raises(UsageError):
        make_certificates(["ü"])

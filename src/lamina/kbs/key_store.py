"""The broker's keys on disk: one file, encrypted as a whole with a passphrase.

Names of resources, their rules and the keys are one JSON text in AES-256-GCM; the key of it comes
from the passphrase by scrypt.  The file is replaced, never changed, and a lock file keeps writers
apart.  A broker that serves notices the new file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from lamina.errors import FormatError, NotFoundError, StoreError, TrustError, UsageError
from lamina.kbs.rules import Rule
from lamina.trust import strict_json
from lamina.trust.broker.kbs_packet import ResourcePath, parse_resource
from lamina.trust.broker.protocol import MAX_RESOURCE_BYTES
from lamina.trust.crypto.cosign_key import BLOCK_SIZE, COST, PARALLELISM, SALT_BYTES, derive_key
from lamina.trust.crypto.secret import Secret

_FORMAT: Final = "lamina-kbs-store/1"
_MAX_FILE_BYTES: Final = 64 << 20
_NONCE_BYTES: Final = 12
_FILE: Final = "keys"
_SCRYPT: Final = {"N": COST, "r": BLOCK_SIZE, "p": PARALLELISM}


class Entry(NamedTuple):
    """A resource; without a rule nobody gets it."""

    value: Secret
    rule: Rule | None


Entries = dict[ResourcePath, Entry]


@dataclass(slots=True)
class KeyStore:
    """An opened store.  ``entries`` is what the file has now."""

    folder: str
    _key: Secret = field(repr=False)
    _salt: bytes = field(repr=False)
    _entries: Entries = field(default_factory=dict, repr=False)
    _seen: tuple[int, int, int] | None = field(default=None, repr=False)

    @classmethod
    def create(cls, folder: str, passphrase: Secret) -> Self:
        """Return a new, empty store.  Raises UsageError if there is one, or for an empty
        passphrase.
        """
        if not len(passphrase):
            raise UsageError("the passphrase of the key store is empty")
        salt = secrets.token_bytes(SALT_BYTES)
        store = cls(folder, Secret(derive_key(passphrase, salt, COST)), salt)
        with store._locked():
            if os.path.lexists(store.path):
                raise UsageError(f"there is a key store in {folder} already")
            store._write({})
        return store

    @classmethod
    def open(cls, folder: str, passphrase: Secret) -> Self:
        """Open the store in a folder.

        Raises NotFoundError, FormatError; TrustError for a wrong passphrase or changed file.
        """
        path = os.path.join(folder, _FILE)
        document, _ = _read(path)
        salt, _, _ = _parts(document, path)
        store = cls(folder, Secret(derive_key(passphrase, salt, COST)), salt)
        store._load()
        return store

    @property
    def path(self) -> str:
        """The file."""
        return os.path.join(self.folder, _FILE)

    @property
    def entries(self) -> Entries:
        """All resources; the file is read again if it is another than before."""
        if _identity(self.path) != self._seen:
            self._load()
        return self._entries

    def change(self, resource: ResourcePath, new: Callable[[Entry | None], Entry | None]) -> None:
        """Replace what a resource has: *new* gets the old entry or None, and None removes it."""
        with self._locked():
            self._load()
            entries = dict(self._entries)
            entry = new(entries.pop(resource, None))
            if entry is not None:
                if not 0 < len(entry.value) <= MAX_RESOURCE_BYTES:
                    raise UsageError(
                        f"a resource has 1 to {MAX_RESOURCE_BYTES} bytes, not {len(entry.value)}"
                    )
                entries[resource] = entry
            self._write(entries)

    def _load(self) -> None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        document, identity = _read(self.path)
        salt, nonce, sealed = _parts(document, self.path)
        if salt != self._salt:
            raise TrustError(f"the key store {self.path} was replaced by another one")
        try:
            plain = AESGCM(self._key.reveal()).decrypt(nonce, sealed, _bound(salt))
        except InvalidTag:
            raise TrustError(
                f"the key store {self.path} cannot be opened with this passphrase, or was changed"
            ) from None
        self._entries, self._seen = _decode(plain, self.path), identity

    def _write(self, entries: Entries) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self._key.reveal()).encrypt(nonce, _encode(entries), _bound(self._salt))
        document = {
            "format": _FORMAT,
            "kdf": {
                "name": "scrypt",
                "params": _SCRYPT,
                "salt": strict_json.encode_base64(self._salt),
            },
            "cipher": {"name": "AES-256-GCM", "nonce": strict_json.encode_base64(nonce)},
            "ciphertext": strict_json.encode_base64(sealed),
        }
        staging = f"{self.path}.{secrets.token_hex(8)}"
        try:
            fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(strict_json.compact(document))
                file.flush()
                os.fsync(fd)
            os.replace(staging, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(staging)
            raise StoreError(f"cannot write the key store {self.path}: {error.strerror}") from None
        self._entries, self._seen = entries, _identity(self.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            os.makedirs(self.folder, 0o700, exist_ok=True)
            fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"cannot write to {self.folder}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: str) -> tuple[dict[str, Any], tuple[int, int, int]]:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no key store {path}", hint="make one: lamina kbs init"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read the key store {path}: {error.strerror}") from None
    if status.st_mode & 0o077:
        raise TrustError(
            f"the key store {path} can be read by other users", hint=f"chmod 600 {path}"
        )
    document = strict_json.parse_object(data, f"key store {path}", _MAX_FILE_BYTES)
    return document, (status.st_ino, status.st_mtime_ns, status.st_size)


def _parts(document: dict[str, Any], path: str) -> tuple[bytes, bytes, bytes]:
    """Salt, nonce and ciphertext."""
    what = f"key store {path}"
    strict_json.expect_keys(document, what, ("format", "kdf", "cipher", "ciphertext"))
    kdf = strict_json.expect_keys(document["kdf"], what, ("name", "params", "salt"))
    cipher = strict_json.expect_keys(document["cipher"], what, ("name", "nonce"))
    written = (document["format"], kdf["name"], kdf["params"], cipher["name"])
    if written != (_FORMAT, "scrypt", _SCRYPT, "AES-256-GCM"):
        raise FormatError(f"the {what} is of another version, or encrypted in another way")
    return (
        strict_json.decode_base64(kdf["salt"], what, SALT_BYTES),
        strict_json.decode_base64(cipher["nonce"], what, _NONCE_BYTES),
        strict_json.decode_base64(document["ciphertext"], what),
    )


def _bound(salt: bytes) -> bytes:
    return _FORMAT.encode() + salt


def _encode(entries: Entries) -> bytes:
    return strict_json.compact(
        {
            str(resource): {
                "value": strict_json.encode_base64(entry.value.reveal()),
                "rule": entry.rule.encode() if entry.rule else None,
            }
            for resource, entry in entries.items()
        }
    )


def _decode(plain: bytes, path: str) -> Entries:
    what = f"key store {path}"
    entries: Entries = {}
    for uri, value in strict_json.parse_object(plain, what, _MAX_FILE_BYTES).items():
        strict_json.expect_keys(value, what, ("value", "rule"))
        rule = None if value["rule"] is None else Rule.decode(value["rule"], f"rule of {uri}")
        entries[parse_resource(uri)] = Entry(
            Secret(strict_json.decode_base64(value["value"], what)), rule
        )
    return entries

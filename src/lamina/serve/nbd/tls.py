"""Who may read a disk over TLS: files in the form that QEMU, nbdkit and GnuTLS have them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from lamina.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

CERTIFICATE, KEY, AUTHORITY = "server-cert.pem", "server-key.pem", "ca-cert.pem"
_MOST_KEY_FILE_BYTES: Final = 1 << 20
_FEWEST_KEY_BYTES: Final = 16


def certificate_context(folder: Path, *, verify_client: bool) -> ssl.SSLContext:
    """Return the settings of a server whose certificate and key are in *folder*.

    With *verify_client* a client must show a certificate of the authority there.  Raises UsageError
    for files that cannot be used.
    """
    context = _context()
    try:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY, password=_no_password)
    except (OSError, ValueError) as error:
        raise _unusable(f"{folder / CERTIFICATE} with {KEY}", error) from error
    if verify_client:
        try:
            context.load_verify_locations(folder / AUTHORITY)
        except (OSError, ValueError) as error:
            raise _unusable(str(folder / AUTHORITY), error) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def key_context(path: Path) -> ssl.SSLContext:
    """Return the settings of a server that shares keys with its clients, ``USER:HEX`` a line.

    Raises UnsupportedError before Python 3.13, UsageError for a file that cannot be used.
    """
    context = _context()
    # Not in the type of Python 3.11.
    set_callback = getattr(context, "set_psk_server_callback", None)
    if set_callback is None or not getattr(ssl, "HAS_PSK", False):
        raise UnsupportedError(
            "keys shared with NBD clients (TLS-PSK) need Python 3.13 or newer",
            hint="--tls-certificates works with this one",
        )
    keys = read_keys(path)
    # The version for which Python documents such keys, and the suites with forward secrecy.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("kECDHEPSK:kDHEPSK")
    cast("Callable[..., Any]", set_callback)(lambda user: keys.get(user or "", b""))
    return context


def read_keys(path: Path) -> dict[str, bytes]:
    """Return the keys of a file as ``psktool`` writes it, by user.  Raises UsageError."""
    try:
        if os.stat(path).st_size > _MOST_KEY_FILE_BYTES:
            raise UsageError(f"the file of keys {path} is too large")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _unusable(str(path), error) from error
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        user, colon, text = line.rpartition(":")
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if not colon or not user or len(key) < _FEWEST_KEY_BYTES:
            raise UsageError(
                f"line {number} of {path} is not USER:HEX with a key of 16 bytes or more"
            )
        keys[user] = key
    if not keys:
        raise UsageError(f"there is no key in {path}")
    return keys


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # No client resumes, and a ticket would be written while another thread sends.
    context.num_tickets = 0
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _unusable(what: str, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or str(error) or "it is not understood"
    return UsageError(f"cannot use {what}: {reason}")

"""The packet by which a key broker's key wraps the options of a layer (confidential containers'
``attestation-agent`` key provider).

What: ``{"kid", "wrapped_data", "iv", "wrap_type"}``; wrapped_data is AES-256-GCM of the private
options with a 12-byte iv and no additional data.  ``A256CTR`` packets are refused: whoever relabels
a GCM packet as CTR could flip bits of the key unseen.  The broker's address in ``kid`` is ignored,
so an image cannot send a reader to another broker.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.errors import FormatError, TrustError, UnsupportedError
from lamina.trust import strict_json
from lamina.trust.crypto.keys import require_cryptography
from lamina.trust.crypto.secret import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

WRAP_TYPE: Final = "A256GCM"
KEY_BYTES: Final = 32
_IV_BYTES: Final = 12
_MAX_PACKET_BYTES: Final = 64 << 10
_NAME: Final = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_URI: Final = re.compile(rf"kbs://[^/?#]*/({_NAME})/({_NAME})/({_NAME})")
_NEWER_FIELDS: Final = ("version", "provider", "provider_settings", "annotations")


class ResourcePath(NamedTuple):
    """Repository, type and tag of a resource of the broker."""

    repository: str
    kind: str
    tag: str

    def __str__(self) -> str:
        return f"kbs:///{self.repository}/{self.kind}/{self.tag}"


def parse_resource(uri: str) -> ResourcePath:
    """Return the path of ``kbs://[ADDRESS]/REPOSITORY/TYPE/TAG``; the address is dropped.

    Raises FormatError.
    """
    found = _URI.fullmatch(uri) if len(uri) <= 1024 else None
    if found is None:
        raise FormatError(f"{uri[:100]!r} names no resource of a key broker")
    return ResourcePath(*found.groups())


class Packet(NamedTuple):
    """A parsed packet, nothing of it proven."""

    resource: ResourcePath
    iv: bytes
    wrapped: bytes


def wrap(key: Secret, resource: ResourcePath, options: bytes, iv: bytes | None = None) -> bytes:
    """Wrap private options with a key of the broker; JSON."""
    iv = os.urandom(_IV_BYTES) if iv is None else iv
    return strict_json.compact(
        {
            "kid": str(resource),
            "wrapped_data": strict_json.encode_base64(_cipher(key).encrypt(iv, options, None)),
            "iv": strict_json.encode_base64(iv),
            "wrap_type": WRAP_TYPE,
        }
    )


def parse_packet(data: bytes) -> Packet:
    """Read a packet of version 1 or 2.  Raises FormatError; UnsupportedError for other ciphers and
    other key management services.
    """
    what = "packet of the key broker"
    document = strict_json.parse_object(data, what, _MAX_PACKET_BYTES)
    required = ("kid", "wrapped_data", "iv", "wrap_type")
    strict_json.expect_keys(document, what, required, _NEWER_FIELDS)
    if document["wrap_type"] != WRAP_TYPE:
        raise UnsupportedError(
            f"the {what} is wrapped with {str(document['wrap_type'])[:20]!r}, not {WRAP_TYPE}",
            hint="other modes do not show that a packet was changed",
        )
    if document.get("provider", "kbs") != "kbs":
        raise UnsupportedError(f"the {what} is of another key management service")
    resource = parse_resource(strict_json.text_of(document["kid"], f"kid of the {what}"))
    iv = strict_json.decode_base64(document["iv"], f"iv of the {what}", _IV_BYTES)
    wrapped = strict_json.decode_base64(document["wrapped_data"], f"data of the {what}")
    return Packet(resource, iv, wrapped)


def unwrap(key: Secret, packet: Packet) -> bytes:
    """Return the private options.  Raises TrustError if the key is another or the packet was
    changed.
    """
    from cryptography.exceptions import InvalidTag

    cipher = _cipher(key)
    try:
        return cipher.decrypt(packet.iv, packet.wrapped, None)
    except InvalidTag:
        raise TrustError(f"the key {packet.resource} does not open the packet") from None


def _cipher(key: Secret) -> AESGCM:
    require_cryptography()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(key) != KEY_BYTES:
        raise FormatError(f"the wrapping key of the broker has {len(key)} bytes, not {KEY_BYTES}")
    return AESGCM(key.reveal())

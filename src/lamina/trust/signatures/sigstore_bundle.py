"""Sigstore bundles of a plain key: a DSSE envelope around an in-toto statement about an image.

What: version 0.3 of the bundle, ``publicKey`` as verification material, one signature without a key
id, predicate ``https://sigstore.dev/cosign/sign/v1``.  cosign 3 attaches these to an image as OCI
referrers.  The statement names no image, only its digest; Lamina states name, release and suite in
the annotations of the subject as well.  Sources: protobuf-specs ``sigstore_bundle.proto``, DSSE
protocol 1.0 (pre-authentication encoding), in-toto statement 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from lamina.errors import FormatError, TrustError, UnsupportedError
from lamina.trust import strict_json
from lamina.trust.crypto.keys import PrivateKey, PublicKey
from lamina.trust.signatures import signature

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MEDIA_TYPE_PREFIX: Final = "application/vnd.dev.sigstore.bundle"
MAX_BUNDLE_BYTES: Final = 1 << 20
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_OLD_STATEMENT: Final = "https://in-toto.io/Statement/v0.1"
PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
_MAX_SUBJECTS: Final = 1024


class Subject(NamedTuple):
    """What a verified statement says of the image."""

    digest: str
    annotations: dict[str, Any]


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a DSSE signature signs."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def make_bundle(key: PrivateKey, digest: str, annotations: dict[str, Any] | None = None) -> bytes:
    """Return a bundle that signs a manifest digest."""
    algorithm, _, encoded = digest.partition(":")
    subject: dict[str, Any] = {"digest": {algorithm: encoded}}
    if annotations:
        subject["annotations"] = annotations
    statement = strict_json.compact(
        {"_type": _STATEMENT, "subject": [subject], "predicateType": PREDICATE, "predicate": {}}
    )
    made = signature.sign(key, pre_authentication(PAYLOAD_TYPE, statement))
    hint = hashlib.sha256(key.public().der()).digest()
    return strict_json.compact(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": strict_json.encode_base64(hint)}},
            "dsseEnvelope": {
                "payload": strict_json.encode_base64(statement),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": strict_json.encode_base64(made)}],
            },
        }
    )


def check_bundle(data: bytes, keys: Sequence[PublicKey], digest: str) -> Subject:
    """Return what a bundle says of the digest, after its signature proved to be of one of the keys.

    Raises FormatError, UnsupportedError for bundles with a certificate, TrustError for another key
    or digest.
    """
    what = "signature bundle"
    document = strict_json.parse_object(data, what, MAX_BUNDLE_BYTES)
    if not str(document.get("mediaType")).startswith(MEDIA_TYPE_PREFIX):
        raise FormatError(f"the {what} is of another media type")
    material = document.get("verificationMaterial")
    if not isinstance(material, dict) or "publicKey" not in material:
        raise UnsupportedError(f"the {what} is not of a plain key")
    payload, made = _envelope(document.get("dsseEnvelope"), what)
    signed = pre_authentication(PAYLOAD_TYPE, payload)
    if not any(signature.is_signed_by(key, made, signed) for key in keys):
        raise TrustError("it is not by a key that is trusted")
    return read_subject(strict_json.parse_object(payload, "signed statement"), digest)


def _envelope(value: Any, what: str) -> tuple[bytes, bytes]:
    envelope = strict_json.expect_keys(
        value, f"envelope of the {what}", ("payload", "payloadType", "signatures")
    )
    signatures = envelope["signatures"]
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise FormatError(f"the payload of the {what} is of another type")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise FormatError(f"the {what} does not have exactly one signature")
    entry = strict_json.expect_keys(signatures[0], f"signature of the {what}", ("sig",), ("keyid",))
    if entry.get("keyid"):
        raise FormatError(f"the {what} has a key id, which nothing vouches for")
    payload = strict_json.decode_base64(envelope["payload"], f"payload of the {what}")
    return payload, strict_json.decode_base64(entry["sig"], f"signature of the {what}")


def read_subject(statement: dict[str, Any], digest: str) -> Subject:
    """Return what a verified statement says of the digest.  Raises FormatError; TrustError if it is
    about something else.
    """
    if statement.get("_type") not in (_STATEMENT, _OLD_STATEMENT):
        raise FormatError("the signed statement is of another type")
    if statement.get("predicateType") != PREDICATE:
        raise TrustError("it states something else than a signature of the image")
    subjects = statement.get("subject")
    if not isinstance(subjects, list) or len(subjects) > _MAX_SUBJECTS:
        raise FormatError("the signed statement has no list of subjects")
    algorithm, _, encoded = digest.partition(":")
    for subject in subjects:
        digests = subject.get("digest") if isinstance(subject, dict) else None
        if isinstance(digests, dict) and digests.get(algorithm) == encoded:
            annotations = subject.get("annotations") or {}
            if not isinstance(annotations, dict):
                raise FormatError("the annotations of the signed statement are no object")
            return Subject(digest, annotations)
    raise TrustError("it is for another digest")

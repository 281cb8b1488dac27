"""Everything that a registry can put before us and that is parsed before or after a signature."""

from __future__ import annotations

import base64
import contextlib
import functools
from collections.abc import Callable
from typing import Any

from lamina.blob.seal import BlobKey
from lamina.blob.sealed_description import SealedBlob, decode_description, encode_description
from lamina.errors import Error
from lamina.oci.reference import parse_reference
from lamina.trust.crypto import der, jwe, pkcs7
from lamina.trust.crypto.keys import load_public_key
from lamina.trust.encryption import key_provider
from lamina.trust.encryption.layer_options import PrivateOptions, PublicOptions
from lamina.trust.signatures import sigstore_bundle
from lamina.trust.signatures.identity import IdentityRule
from lamina.trust.signatures.policy import parse_policy
from lamina.trust.signatures.simple_signing import Payload

_JWK = (
    b'{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",'
    b'"y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}'
)
_BUNDLE = (
    b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":'
    b'{"publicKey":{}},"dsseEnvelope":{"payload":"e30=","payloadType":'
    b'"application/vnd.in-toto+json","signatures":[{"sig":"AAAA"}]}}'
)
_JWE = (
    b'{"protected":"eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ","encrypted_key":"AA",'
    b'"iv":"AAAAAAAAAAAAAAAA","ciphertext":"AA","tag":"AAAAAAAAAAAAAAAAAAAAAA"}'
)
_POLICY = (
    b'{"default":[{"type":"reject"}],"transports":{"docker":{"x":[{"type":"sigstoreSigned",'
    b'"keyData":"%s"}]}}}'
)
_WANTED = parse_reference("docker://h.example/r:t")


@functools.cache
def _parsers() -> list[Callable[[bytes], Any]]:
    return [
        lambda data: Payload.decode(data),
        lambda data: PublicOptions.decode(data),
        lambda data: PrivateOptions.decode(data),
        lambda data: sigstore_bundle.check_bundle(data, [], "sha256:" + "0" * 64),
        lambda data: jwe.decrypt(data, []),
        lambda data: pkcs7.decrypt(data, [], []),
        lambda data: list(der.children(der.read(data, "x"), "x")),
        lambda data: parse_policy(data),
        lambda data: load_public_key(data, "k"),
        lambda data: decode_description(data),
        lambda data: key_provider.unpack(data),
        lambda data: key_provider.read_answer(data, "keyunwrapresults", "optsdata"),
        lambda data: IdentityRule().allows(data.decode("utf-8", "replace"), _WANTED),
    ]


def target(data: bytes) -> None:
    """The first byte chooses the parser."""
    parsers = _parsers()
    with contextlib.suppress(Error):
        parsers[data[0] % len(parsers) if data else 0](data[1:])


def seeds() -> list[bytes]:
    """One document a parser."""
    digest = "sha256:" + "0" * 64
    encoded = base64.b64encode(bytes(32))
    blob = SealedBlob(
        blob_id=bytes(16), key=BlobKey(bytes(32)), piece_count=1, size_bytes=1, root=bytes(32)
    )
    documents = [
        Payload("h.example/r:t", digest, {"release": 1}).encode(),
        PublicOptions(bytes(32)).encode(),
        PrivateOptions.new(digest).encode(),
        _BUNDLE,
        _JWE,
        pkcs7.encrypt(b"x", []),
        der.encode(der.SEQUENCE, der.encode(der.INTEGER, b"\0")),
        _POLICY % encoded,
        _JWK,
        encode_description([blob]),
        key_provider.pack(b"{}"),
        b'{"keyunwrapresults":{"optsdata":[1,2]}}',
        b"h.example/r:t",
    ]
    return [bytes((number,)) + document for number, document in enumerate(documents)]

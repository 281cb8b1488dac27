"""A Sigstore instance in a few lines: certificate authority, certificate log, transparency log, and
bundles by it.  Sources: RFC 6962 §3.2, sigstore-python's verifier.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import struct
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from lamina.trust.signatures.sigstore_bundle import PREDICATE, pre_authentication

ISSUER = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
STATEMENT = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def der(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)
    return data


def sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


class SigstoreInstance:
    """Keys of the three services, and what they issue."""

    def __init__(self) -> None:
        self.ca_key, self.ct_key, self.rekor_key = (
            ec.generate_private_key(ec.SECP256R1()) for _ in range(3)
        )
        self.now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test sigstore")])
        self.root = (
            self._builder(name, name, self.ca_key, dt.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .sign(self.ca_key, hashes.SHA256())
        )
        self.name = name

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: Any, life: dt.timedelta
    ) -> x509.CertificateBuilder:
        begin = self.now - dt.timedelta(minutes=5)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
        builder = builder.public_key(key.public_key()).serial_number(4711)
        builder = builder.not_valid_before(begin).not_valid_after(begin + life)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return builder.add_extension(identifier, critical=False)

    def leaf(self, key: Any, identity: str, issuer: str) -> x509.Certificate:
        """A certificate with an SCT of our log in it."""
        text = issuer.encode()
        builder = (
            self._builder(x509.Name([]), self.name, key, dt.timedelta(minutes=10))
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
            )
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca_key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.UnrecognizedExtension(ISSUER, bytes((0x0C, len(text))) + text), critical=False
            )
        )
        # What the log signs leaves the SCT out, so it is known from a certificate without it.
        before = builder.sign(self.ca_key, hashes.SHA256()).tbs_certificate_bytes
        stamp = int(self.now.timestamp() * 1000)
        entry = hashlib.sha256(der(self.ca_key)).digest() + len(before).to_bytes(3, "big") + before
        made = sign(self.ct_key, struct.pack("!BBQH", 0, 0, stamp, 1) + entry + b"\0\0")
        sct = b"\0" + hashlib.sha256(der(self.ct_key)).digest() + struct.pack("!QH", stamp, 0)
        sct += bytes((4, 3)) + struct.pack("!H", len(made)) + made
        listed = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        value = bytes((0x04, 0x81, len(listed)) if len(listed) > 127 else (0x04, len(listed)))
        builder = builder.add_extension(
            x509.UnrecognizedExtension(SCT_LIST, value + listed), critical=False
        )
        return builder.sign(self.ca_key, hashes.SHA256())

    def bundle(
        self,
        digest: str,
        identity: str = "dev@example.com",
        issuer: str = "https://issuer.example",
        annotations: dict[str, Any] | None = None,
        **changes: Any,
    ) -> bytes:
        """A bundle about a manifest digest; ``changes`` go into the statement."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.leaf(key, identity, issuer)
        subject = {"digest": {"sha256": digest.removeprefix("sha256:")}}
        if annotations:
            subject["annotations"] = annotations
        statement = {"_type": STATEMENT, "subject": [subject], "predicateType": PREDICATE}
        payload = json.dumps({**statement, "predicate": {}, **changes}).encode()
        signature = sign(key, pre_authentication(PAYLOAD_TYPE, payload))
        entry = self._log_entry(certificate, payload, signature)
        material = {
            "certificate": {"rawBytes": b64(certificate.public_bytes(s.Encoding.DER))},
            "tlogEntries": [entry],
        }
        envelope = {
            "payload": b64(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": b64(signature)}],
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                "verificationMaterial": material,
                "dsseEnvelope": envelope,
            }
        ).encode()

    def _log_entry(
        self, certificate: x509.Certificate, payload: bytes, signature: bytes
    ) -> dict[str, Any]:
        """The only entry of a log."""
        verifier = b64(certificate.public_bytes(s.Encoding.PEM))
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": "00" * 32},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
            "signatures": [{"signature": b64(signature), "verifier": verifier}],
        }
        body = json.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}).encode()
        root = hashlib.sha256(b"\0" + body).digest()
        log = hashlib.sha256(der(self.rekor_key)).digest()
        note = f"test log\n1\n{b64(root)}\n"
        signed = b64(log[:4] + sign(self.rekor_key, note.encode()))
        moment = int(self.now.timestamp())
        promised = {"body": b64(body), "integratedTime": moment, "logID": log.hex(), "logIndex": 0}
        canonical = json.dumps(promised, separators=(",", ":"), sort_keys=True).encode()
        return {
            "logIndex": "0",
            "logId": {"keyId": b64(log)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(moment),
            "inclusionPromise": {"signedEntryTimestamp": b64(sign(self.rekor_key, canonical))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": b64(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\u2014 test-log {signed}\n"},
            },
            "canonicalizedBody": b64(body),
        }

    def trusted_root(self) -> str:
        """The JSON that a verifier trusts."""
        start = {"start": "2020-01-01T00:00:00Z"}

        def log(key: Any) -> dict[str, Any]:
            public = {
                "rawBytes": b64(der(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": start,
            }
            identifier = b64(hashlib.sha256(der(key)).digest())
            return {
                "baseUrl": "https://log.example",
                "hashAlgorithm": "SHA2_256",
                "publicKey": public,
                "logId": {"keyId": identifier},
            }

        raw = self.root.public_bytes(s.Encoding.DER)
        authority = {
            "subject": {"organization": "test", "commonName": "test sigstore"},
            "uri": "https://ca.example",
            "certChain": {"certificates": [{"rawBytes": b64(raw)}]},
            "validFor": start,
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.rekor_key)],
                "certificateAuthorities": [authority],
                "ctlogs": [log(self.ct_key)],
                "timestampAuthorities": [],
            }
        )


def _usage(*, ca: bool) -> x509.KeyUsage:
    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    off = dict.fromkeys((*names, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, **off)

"""Keyless signatures: bundles with a short-lived certificate for an identity, verified offline.

The package ``sigstore`` does the work (chain, SCT, transparency log, times) against the trusted
root that is given and no other; nothing is asked over the network.  What it leaves to its caller,
the type of the statement and its subject, is checked here.  Source: protobuf-specs,
``sigstore_trustroot.proto``; sigstore-python 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lamina.errors import FormatError, NotFoundError, TrustError, UnsupportedError, UsageError
from lamina.trust import strict_json
from lamina.trust.signatures import sigstore_bundle
from lamina.trust.signatures.sigstore_bundle import Subject


@dataclass(frozen=True, slots=True)
class KeylessSigner:
    """Who must have signed: the identity in the certificate (an e-mail address or URI), who vouched
    for it, and the file of the trusted root.
    """

    identity: str
    issuer: str
    trusted_root: str


def check_keyless_bundle(data: bytes, signer: KeylessSigner, digest: str) -> Subject:
    """Return what a bundle says of the digest, after it proved to be of the signer.

    Raises FormatError, TrustError; UnsupportedError if ``sigstore`` is not installed, UsageError
    for a trusted root that is none.
    """
    document = strict_json.parse_object(data, "signature bundle", sigstore_bundle.MAX_BUNDLE_BYTES)
    material = document.get("verificationMaterial")
    if not isinstance(material, dict) or "publicKey" in material:
        raise TrustError("it is by a key, not by an identity")
    kind, payload = _verified(data, signer, _verifier(signer.trusted_root))
    if kind != sigstore_bundle.PAYLOAD_TYPE:
        raise FormatError("the payload of the signature bundle is of another type")
    return sigstore_bundle.read_subject(
        strict_json.parse_object(payload, "signed statement"), digest
    )


def _verifier(path: str) -> Any:
    try:
        from sigstore.models import TrustedRoot
        from sigstore.verify import Verifier
    except ImportError:
        raise UnsupportedError(
            "keyless signatures need the Python package 'sigstore'",
            hint="pip install 'lamina[keyless]'",
        ) from None
    try:
        return Verifier(trusted_root=TrustedRoot.from_file(path))
    except FileNotFoundError:
        raise NotFoundError(f"there is no trusted root {path}") from None
    except Exception as error:  # noqa: BLE001 - models and parsers of another package
        raise UsageError(f"{path} is no trusted root of Sigstore: {_first_line(error)}") from None


def _verified(data: bytes, signer: KeylessSigner, verifier: Any) -> tuple[str, bytes]:
    from sigstore.models import Bundle
    from sigstore.verify import policy

    # Certificates have the issuer in one of two extensions, the newer ones in both.
    issuer = policy.AnyOf([policy.OIDCIssuerV2(signer.issuer), policy.OIDCIssuer(signer.issuer)])
    wanted = policy.AllOf([policy.Identity(identity=signer.identity), issuer])
    try:
        kind, payload = verifier.verify_dsse(Bundle.from_json(data), wanted)
    except Exception as error:  # noqa: BLE001 - whatever a hostile bundle does, it is not proven
        raise TrustError(f"it is not by {signer.identity}: {_first_line(error)}") from None
    return str(kind), bytes(payload)


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return "".join(c if c.isprintable() else "?" for c in text)

"""Signing an image and deciding whether its signatures allow its use.

The signature is over the digest of the manifest (or index) as it is pushed, so after encryption;
the payload has the exact name.  Beside key and name, a signer can state a release number and a
suite, and a verifier can demand a minimum, which stops a roll-back to an older signed image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lamina.errors import FormatError, TrustError, UnsupportedError, UsageError
from lamina.registry.manifest import Descriptor
from lamina.registry.reference import Reference, parse_reference
from lamina.registry.repository import Repository
from lamina.trust import bundle, signature
from lamina.trust.attachments import Attached, add_signature, read_signatures
from lamina.trust.bundle_store import add_bundle, read_bundles
from lamina.trust.identity import IdentityRule
from lamina.trust.keyless import KeylessSigner, check_keyless_bundle
from lamina.trust.keys import PrivateKey, PublicKey
from lamina.trust.simple_signing import Payload

RELEASE: Final = "release"
SUITE: Final = "suite"
FORMS: Final = ("tag", "bundle")
"""Where a signature is put: under cosign's tag, and as a bundle that refers to the image."""
_NAME: Final = "docker-reference"
"""Annotation of a bundle's subject that has the name."""

_Check = Callable[["Demand"], Payload]


@dataclass(frozen=True, slots=True)
class Demand:
    """What one good signature must fulfil: any of the keys or the keyless signer, the rule of the
    name, and the anchors (``minimum_release`` 0 and ``suite`` "" demand nothing).
    """

    keys: tuple[PublicKey, ...]
    identity: IdentityRule = field(default_factory=IdentityRule)
    minimum_release: int = 0
    suite: str = ""
    annotations: dict[str, str] = field(default_factory=dict)
    signer: KeylessSigner | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """The manifest that was proven, its bytes, and the payloads that proved it."""

    descriptor: Descriptor
    data: bytes
    payloads: tuple[Payload, ...]


def sign_image(
    repository: Repository,
    key: PrivateKey,
    *,
    identity: str | None = None,
    optional: dict[str, Any] | None = None,
    forms: Sequence[str] = FORMS,
) -> tuple[Descriptor, Payload]:
    """Sign what the repository's reference names, under ``identity`` or that reference, in all
    ``forms``.

    Raises UsageError for local images without an identity, and for a reference without a tag.
    """
    descriptor, _ = repository.manifest()
    payload = Payload(
        _checked_identity(identity, repository.reference), descriptor.digest, optional or {}
    )
    if "tag" in forms:
        data = payload.encode()
        add_signature(repository, descriptor.digest, Attached(data, signature.sign(key, data)))
    if "bundle" in forms:
        annotations = {_NAME: payload.reference, **payload.optional}
        made = bundle.make_bundle(key, descriptor.digest, annotations)
        add_bundle(repository, descriptor, made)
    return descriptor, payload


def _checked_identity(identity: str | None, reference: Reference) -> str:
    if identity is not None:
        parsed = parse_reference(f"docker://{identity}")
        return str(parsed).removeprefix("docker://")
    if not reference.is_remote:
        raise UsageError(
            f"{reference} has no name that a signature could state",
            hint="give the name under which it will be pulled: --identity HOST/NAME:TAG",
        )
    if reference.tag is None:
        raise UsageError(
            f"{reference} has no tag, and the signature is for an exact name",
            hint="name a tag, or give --identity HOST/NAME:TAG",
        )
    return f"{reference.name}:{reference.tag}"


def verify_image(
    repository: Repository, demands: Sequence[Demand], wanted: Reference | None = None
) -> Verified:
    """Prove that every demand is met by some signature; ``wanted`` is what the user asked for, by
    default the repository's reference.

    Raises TrustError that says why each signature was not good enough.  Use only the bytes
    returned, and do not fetch the manifest again.
    """
    descriptor, data = repository.manifest()
    wanted = wanted or repository.reference
    checks = _candidates(repository, descriptor.digest, wanted)
    if not checks:
        raise TrustError(
            f"{wanted} ({descriptor.digest}) has no signature",
            hint="sign it: lamina sign --key FILE IMAGE",
        )
    payloads = [_satisfy(demand, checks, wanted) for demand in demands]
    return Verified(descriptor, data, tuple(payloads))


def _candidates(repository: Repository, digest: str, wanted: Reference) -> list[_Check]:
    """A check for each signature of both forms."""

    def of_tag(entry: Attached) -> _Check:
        return lambda demand: check_signature(demand, entry, digest, wanted)

    def of_bundle(data: bytes) -> _Check:
        return lambda demand: _check_bundle(demand, data, digest, wanted)

    checks = [of_tag(entry) for entry in read_signatures(repository, digest)]
    return checks + [of_bundle(data) for data in read_bundles(repository, digest)]


def _satisfy(demand: Demand, checks: Sequence[_Check], wanted: Reference) -> Payload:
    reasons: dict[str, None] = {}
    for check in checks:
        try:
            return check(demand)
        except (TrustError, FormatError, UnsupportedError) as error:
            reasons[str(error)] = None
    raise TrustError(f"no signature of {wanted} is good enough: {'; '.join(reasons)}")


def check_signature(demand: Demand, attached: Attached, digest: str, wanted: Reference) -> Payload:
    """The payload of one signature that meets the demand.

    Nothing of the payload is looked at before its signature is right.  Raises TrustError,
    FormatError.
    """
    if not any(
        signature.is_signed_by(key, attached.signature, attached.payload) for key in demand.keys
    ):
        raise TrustError("it is not by a key that is trusted")
    payload = Payload.decode(attached.payload)
    if payload.digest != digest:
        raise TrustError(f"it is for another digest, {payload.digest}")
    _check_statement(demand, payload, wanted)
    return payload


def _check_bundle(demand: Demand, data: bytes, digest: str, wanted: Reference) -> Payload:
    """The same of a bundle: name and anchors stand in the annotations of its subject."""
    if demand.signer is not None:
        subject = check_keyless_bundle(data, demand.signer, digest)
    else:
        subject = bundle.check_bundle(data, demand.keys, digest)
    optional = {name: value for name, value in subject.annotations.items() if name != _NAME}
    payload = Payload(str(subject.annotations.get(_NAME, "")), digest, optional)
    _check_statement(demand, payload, wanted)
    return payload


def _check_statement(demand: Demand, payload: Payload, wanted: Reference) -> None:
    if not demand.identity.allows(payload.reference, wanted):
        raise TrustError(f"it is for another name, {payload.reference[:200]!r}")
    if demand.minimum_release:
        release = payload.optional.get(RELEASE)
        if type(release) is not int or release < demand.minimum_release:
            raise TrustError(
                f"it is for release {release!r:.20}, older than {demand.minimum_release}"
            )
    if demand.suite and payload.optional.get(SUITE) != demand.suite:
        raise TrustError(f"it is not for the suite {demand.suite!r}")
    for name, value in demand.annotations.items():
        if str(payload.optional.get(name)) != value:
            raise TrustError(f"it does not state {name}={value}")

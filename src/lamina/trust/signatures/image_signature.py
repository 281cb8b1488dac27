"""Signing an image and deciding whether its signatures allow its use.

The signature is over the digest of the manifest (or index) as it is pushed, so after encryption;
the payload has the exact name.  Beside key and name, a signer can state a release number and a
suite, and a verifier can demand a minimum, which stops a roll-back to an older signed image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from lamina.errors import FormatError, TrustError, UnsupportedError, UsageError
from lamina.oci.manifest import Descriptor
from lamina.oci.reference import Reference, parse_reference
from lamina.oci.verity_manifest import ROOT_HASH, VERITY_ROOT
from lamina.registry.repository import Repository
from lamina.trust.crypto.keys import PrivateKey, PublicKey
from lamina.trust.signatures import signature, sigstore_bundle
from lamina.trust.signatures.attachments import Attached, add_signature, read_signatures
from lamina.trust.signatures.identity import IdentityRule
from lamina.trust.signatures.keyless import KeylessSigner, check_keyless_bundle
from lamina.trust.signatures.sigstore_bundle_store import add_bundle, read_bundles
from lamina.trust.signatures.simple_signing import RELEASE, Payload

SUITE: Final = "suite"
FORMS: Final = ("tag", "bundle")
"""Where a signature is put: under cosign's tag, and as a bundle that refers to the image."""
_JSON_NAMES: Final = {str: "a text", float: "a fraction", bool: "true or false"}
_NAME: Final = "docker-reference"
"""Annotation of a bundle's subject that has the name."""


class Signatures(NamedTuple):
    """Signatures of one manifest in both forms, none of them verified."""

    of_tag: tuple[Attached, ...] = ()
    bundles: tuple[bytes, ...] = ()


class _Candidate(NamedTuple):
    entry: Attached | bytes
    check: Callable[[Demand], Payload]


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
    """The manifest that was proven, its bytes, and the payloads and signatures that proved it."""

    descriptor: Descriptor
    data: bytes
    payloads: tuple[Payload, ...]
    signatures: Signatures = field(default_factory=Signatures)

    @property
    def release(self) -> int | None:
        """The release that the signatures state.

        Of several good signatures for one demand the highest counts: each of them suffices, and who
        withholds some can only make the image look older.  Of several demands the lowest counts: so
        much is stated by everybody who has to sign and states a release.
        """
        stated = [payload.release for payload in self.payloads]
        return min((release for release in stated if release is not None), default=None)

    @property
    def disk_root(self) -> str | None:
        """The root hash of the image as a disk that the signatures state.

        Raises TrustError if they state several, or what is none.
        """
        stated: set[str] = set()
        for payload in self.payloads:
            root = payload.optional.get(VERITY_ROOT)
            if isinstance(root, str) and ROOT_HASH.fullmatch(root):
                stated.add(root)
            elif root is not None:
                raise TrustError("the signatures of the image state a root hash that is none")
        if len(stated) > 1:
            raise TrustError("the signatures of the image state several root hashes of its disk")
        return stated.pop() if stated else None


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
        made = sigstore_bundle.make_bundle(key, descriptor.digest, annotations)
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
    digest = descriptor.digest
    signatures = Signatures(
        tuple(read_signatures(repository, digest)), tuple(read_bundles(repository, digest))
    )
    return prove(descriptor, data, signatures, demands, wanted or repository.reference)


def prove(
    descriptor: Descriptor,
    data: bytes,
    signatures: Signatures,
    demands: Sequence[Demand],
    wanted: Reference,
) -> Verified:
    """Prove that each demand is met by some of these signatures; nothing is fetched.

    ``data`` must have the digest of the descriptor.  Raises TrustError.
    """
    candidates = _candidates(signatures, descriptor.digest, wanted)
    if not candidates:
        raise TrustError(
            f"{wanted} ({descriptor.digest}) has no signature",
            hint="sign it: lamina sign --key FILE IMAGE",
        )
    met = [_satisfy(demand, candidates, wanted) for demand in demands]
    entries = dict.fromkeys(entry for entry, _ in met)
    good = Signatures(
        tuple(entry for entry in entries if isinstance(entry, Attached)),
        tuple(entry for entry in entries if isinstance(entry, bytes)),
    )
    return Verified(descriptor, data, tuple(payload for _, payload in met), good)


def _candidates(signatures: Signatures, digest: str, wanted: Reference) -> list[_Candidate]:
    """Return a check for each signature of both forms."""

    def of_tag(entry: Attached) -> _Candidate:
        return _Candidate(entry, lambda demand: check_signature(demand, entry, digest, wanted))

    def of_bundle(data: bytes) -> _Candidate:
        return _Candidate(data, lambda demand: _check_bundle(demand, data, digest, wanted))

    return [*map(of_tag, signatures.of_tag), *map(of_bundle, signatures.bundles)]


def _satisfy(
    demand: Demand, candidates: Sequence[_Candidate], wanted: Reference
) -> tuple[Attached | bytes, Payload]:
    """Return the signature that meets the demand and states the highest release, and its
    payload.
    """
    reasons: dict[str, None] = {}
    good = []
    for entry, check in candidates:
        try:
            good.append((entry, check(demand)))
        except (TrustError, FormatError, UnsupportedError) as error:
            reasons[str(error)] = None
    if not good:
        raise TrustError(
            f"no signature of {wanted} is good enough: {'; '.join(reasons)}",
            hint="somebody may have put another image in its place; if it is the right one, have "
            "it signed by whom the policy trusts",
        )
    return max(good, key=lambda found: -1 if found[1].release is None else found[1].release)


def check_signature(demand: Demand, attached: Attached, digest: str, wanted: Reference) -> Payload:
    """Return the payload of one signature that meets the demand.

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
    """Return the same of a bundle: name and anchors stand in the annotations of its subject."""
    if demand.signer is not None:
        subject = check_keyless_bundle(data, demand.signer, digest)
    else:
        subject = sigstore_bundle.check_bundle(data, demand.keys, digest)
    optional = {name: value for name, value in subject.annotations.items() if name != _NAME}
    payload = Payload(str(subject.annotations.get(_NAME, "")), digest, optional)
    _check_statement(demand, payload, wanted)
    return payload


def _check_release(payload: Payload, least: int) -> None:
    stated = payload.optional.get(RELEASE)
    if stated is None:
        raise TrustError(f"it states no release, and at least {least} is demanded")
    if payload.release is None:
        raise TrustError(
            f"it states the release {stated!r:.80}, which is no number but "
            f"{_JSON_NAMES.get(type(stated), 'something else')}"
        )
    if payload.release < least:
        raise TrustError(f"it is for release {payload.release}, older than {least}")


def _check_statement(demand: Demand, payload: Payload, wanted: Reference) -> None:
    if not demand.identity.allows(payload.reference, wanted):
        if not payload.reference:
            raise TrustError("it states no name, as bundles of cosign do (verify --any-name)")
        raise TrustError(f"it is for another name, {payload.reference[:200]!r}")
    if demand.minimum_release:
        _check_release(payload, demand.minimum_release)
    if demand.suite and payload.optional.get(SUITE) != demand.suite:
        raise TrustError(f"it is not for the suite {demand.suite!r}")
    for name, value in demand.annotations.items():
        if str(payload.optional.get(name)) != value:
            raise TrustError(f"it does not state {name}={value}")

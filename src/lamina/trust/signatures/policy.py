"""The policy file of containers, ``policy.json``: which images may be used, by whose signature.

Source: containers-policy.json(5).  Unknown fields make the whole file invalid.  The most specific
scope that fits decides alone, and all its requirements must hold.  ``signedBy`` (GPG), ``pki`` and
``rekor`` keys are known but never fulfilled here: an image that needs them is refused.
Beyond the specification ``sigstoreSigned`` may demand ``minimumRelease``, a number, and ``suite``.

``fulcio`` is fulfilled with ``trustedRoot``, Lamina's own too: the file of a trusted root of
Sigstore.  It has what ``caPath`` and ``rekorPublicKeyPath`` leave out, the keys of the certificate
logs: without them a certificate that was issued behind everybody's back would do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from lamina.errors import FormatError, NotFoundError, TrustError, UnsupportedError, UsageError
from lamina.oci.manifest import Descriptor
from lamina.oci.reference import Reference
from lamina.registry.repository import Repository
from lamina.trust import strict_json
from lamina.trust.crypto.keys import PublicKey, load_public_key, read_key_file
from lamina.trust.signatures.identity import IdentityRule, parse_rule
from lamina.trust.signatures.image_signature import (
    Demand,
    Signatures,
    Verified,
    prove,
    verify_image,
)
from lamina.trust.signatures.keyless import KeylessSigner

MAX_POLICY_BYTES: Final = 1 << 20
_KEY_SOURCES: Final = ("keyPath", "keyPaths", "keyData", "keyDatas", "fulcio", "pki")
_REKOR: Final = (
    "rekorPublicKeyPath",
    "rekorPublicKeyPaths",
    "rekorPublicKeyData",
    "rekorPublicKeyDatas",
)
_ANCHORS: Final = ("minimumRelease", "suite", "trustedRoot")
"""Lamina's own members of ``sigstoreSigned``; other tools refuse a file that has them."""
_AUTHORITIES: Final = ("caPath", "caData")
_PATHS: Final = ("keyPath", "keyPaths", "trustedRoot")
_SIGNED_BY: Final = ("keyType", "keyPath", "keyPaths", "keyData", "signedIdentity")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement; ``demand`` is for ``sigstoreSigned`` only, ``hint`` for what cannot be
    fulfilled here.
    """

    kind: str
    demand: Demand | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy file: requirements by transport and scope, and the default."""

    default: tuple[Requirement, ...]
    transports: dict[str, dict[str, tuple[Requirement, ...]]]
    source: str

    def requirements(self, reference: Reference) -> tuple[str, tuple[Requirement, ...]]:
        """Return the scope that decides about an image ("default" if none does), and what it
        demands.
        """
        scopes = self.transports.get(reference.transport, {})
        if not reference.is_remote:
            scopes = _real_scopes(scopes)
        for scope in scopes_of(reference):
            if scope in scopes:
                return scope or f"all of {reference.transport}", scopes[scope]
        return "default", self.default

    def check(self, repository: Repository, wanted: Reference | None = None) -> Verified:
        """Prove that the image may be used.

        Raises TrustError, UnsupportedError.  Use only the manifest bytes returned.
        """
        wanted = wanted or repository.reference
        demands = self._demands(wanted)
        if not demands:
            descriptor, data = repository.manifest()
            return Verified(descriptor, data, ())
        return verify_image(repository, demands, wanted)

    def check_kept(
        self, descriptor: Descriptor, data: bytes, signatures: Signatures, wanted: Reference
    ) -> Verified:
        """Return the same of a manifest and signatures that were kept; nothing is fetched."""
        demands = self._demands(wanted)
        if not demands:
            return Verified(descriptor, data, ())
        return prove(descriptor, data, signatures, demands, wanted)

    def _demands(self, wanted: Reference) -> list[Demand]:
        """Return what signatures must fulfil.  Raises what an image is refused with in any case."""
        scope, requirements = self.requirements(wanted)
        demands = []
        for requirement in requirements:
            if requirement.kind == "reject":
                raise TrustError(f"the policy {self.source} rejects {wanted} (scope: {scope})")
            if requirement.kind not in ("insecureAcceptAnything", "sigstoreSigned"):
                raise UnsupportedError(
                    f"the policy {self.source} demands {requirement.kind} for {wanted}, which "
                    "cannot be verified here",
                    hint=requirement.hint,
                )
            if requirement.demand is not None:
                demands.append(requirement.demand)
        return demands


def _real_scopes(
    scopes: dict[str, tuple[Requirement, ...]],
) -> dict[str, tuple[Requirement, ...]]:
    """Scopes of local images without symbolic links in their paths, as :func:`scopes_of` has them;
    what several say of one path is all demanded.
    """
    found: dict[str, tuple[Requirement, ...]] = {}
    for scope, requirements in scopes.items():
        path, colon, tag = scope.partition(":")
        real = os.path.realpath(path) + colon + tag if path else scope
        found[real] = found.get(real, ()) + requirements
    return found


def scopes_of(reference: Reference) -> Iterator[str]:
    """Scopes that fit an image, the most specific first, "" (the whole transport) last.

    A local image has those of its absolute path without symbolic links, however it is written.
    """
    name = reference.name if reference.is_remote else os.path.realpath(reference.path)
    if reference.tag is not None:
        yield f"{name}:{reference.tag}"
    if reference.digest is not None:
        yield f"{name}@{reference.digest}"
    while name:
        yield name
        if "/" not in name:
            break
        name = name.rpartition("/")[0]
    if reference.is_remote:
        host = reference.registry.partition(":")[0]
        while "." in host:
            host = host.partition(".")[2]
            yield f"*.{host}"
    yield ""


def load_policy(path: str) -> Policy:
    """Read a policy file with all keys that it names, relative paths from its own folder on, since
    it may be read by a process that stands elsewhere.  Raises FormatError, NotFoundError.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no policy file {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read the policy file {path}: {error.strerror}") from None
    return parse_policy(data, path, os.path.dirname(os.path.abspath(path)))


def parse_policy(data: bytes, source: str = "policy", folder: str = "") -> Policy:
    """Parse a policy file; relative paths in it are from *folder* on.

    Raises FormatError for anything that is not exactly right.
    """
    document = strict_json.parse_object(data, f"policy {source}", MAX_POLICY_BYTES)
    document = _with_paths_from(folder, document)
    strict_json.expect_keys(document, f"policy {source}", ("default",), ("transports",))
    default = _requirements(document["default"], f"default of the policy {source}")
    transports: dict[str, dict[str, tuple[Requirement, ...]]] = {}
    for transport, scopes in _object(document.get("transports", {}), source).items():
        transports[transport] = {
            scope: _requirements(value, f"scope {scope!r} of the policy {source}")
            for scope, value in _object(scopes, source).items()
        }
    return Policy(default, transports, source)


def _with_paths_from(folder: str, value: Any, name: str = "") -> Any:
    """Return a part of a policy with its paths made absolute."""
    if isinstance(value, str):
        return os.path.join(folder, value) if name in _PATHS else value
    if isinstance(value, list):
        return [_with_paths_from(folder, item, name) for item in value]
    if isinstance(value, dict):
        return {key: _with_paths_from(folder, item, key) for key, item in value.items()}
    return value


def _object(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"the transports of the policy {source} are no object")
    return value


def _requirements(value: Any, what: str) -> tuple[Requirement, ...]:
    if not isinstance(value, list) or not value:
        raise FormatError(
            f"the {what} is no list with at least one requirement",
            hint='write [{"type": "reject"}] to refuse everything',
        )
    return tuple(_requirement(item, what) for item in value)


def _requirement(value: Any, what: str) -> Requirement:
    if not isinstance(value, dict):
        raise FormatError(f"a requirement of the {what} is no object")
    kind = value.get("type")
    match kind:
        case "insecureAcceptAnything" | "reject":
            strict_json.expect_keys(value, what, ("type",))
            return Requirement(str(kind))
        case "signedBy":
            strict_json.expect_keys(value, what, ("type",), _SIGNED_BY)
            return Requirement("signedBy")
        case "sigstoreSigned":
            return _sigstore_signed(value, what)
        case _:
            shown = json.dumps(kind)[:60]
            raise FormatError(f"the {what} has a requirement of an unknown type {shown}")


def _sigstore_signed(value: dict[str, Any], what: str) -> Requirement:
    optional = (*_KEY_SOURCES, *_REKOR, "signedIdentity", *_ANCHORS)
    strict_json.expect_keys(value, what, ("type",), optional)
    sources = [name for name in _KEY_SOURCES if name in value]
    if len(sources) != 1:
        raise FormatError(f"the {what} needs exactly one of {', '.join(_KEY_SOURCES)}")
    rule = IdentityRule()
    if "signedIdentity" in value:
        rule = parse_rule(value["signedIdentity"], what)
    release, suite = value.get("minimumRelease", 0), value.get("suite", "")
    if type(release) is not int or release < 0 or type(suite) is not str:
        raise FormatError(f"the minimumRelease or suite of the {what} is malformed")
    if sources[0] == "fulcio":
        return _keyless(value, Demand((), rule, release, suite), what)
    if "trustedRoot" in value:
        raise FormatError(f"the {what} has a trustedRoot without fulcio")
    if sources[0] == "pki" or any(name in value for name in _REKOR):
        return Requirement(
            f"sigstoreSigned with {'pki' if sources[0] == 'pki' else 'a transparency log'}",
            hint="use keyPath or keyData alone, or fulcio with trustedRoot",
        )
    keys = _keys(sources[0], value[sources[0]], what)
    return Requirement("sigstoreSigned", Demand(keys, rule, release, suite))


def _keyless(value: dict[str, Any], demand: Demand, what: str) -> Requirement:
    """By whom a certificate of Fulcio must be; proven offline, by the trusted root alone."""
    fulcio = strict_json.expect_keys(
        value["fulcio"], f"fulcio of the {what}", ("oidcIssuer", "subjectEmail"), _AUTHORITIES
    )
    texts = {name: strict_json.text_of(text, what) for name, text in fulcio.items()}
    root = value.get("trustedRoot")
    if root is None:
        return Requirement(
            "sigstoreSigned with fulcio and no trustedRoot",
            hint="add trustedRoot, a file as `cosign trusted-root create` makes it, to the "
            "requirement, or use lamina verify --certificate-identity",
        )
    trusted_root = strict_json.text_of(root, f"trustedRoot of the {what}")
    if any(name in fulcio for name in _AUTHORITIES) or any(name in value for name in _REKOR):
        raise FormatError(f"the {what} has a trustedRoot, and authorities or logs beside it")
    signer = KeylessSigner(texts["subjectEmail"], texts["oidcIssuer"], trusted_root)
    return Requirement("sigstoreSigned", replace(demand, signer=signer))


def _keys(source: str, value: Any, what: str) -> tuple[PublicKey, ...]:
    values = value if source.endswith("s") else [value]
    if not isinstance(values, list) or not values:
        raise FormatError(f"the {source} of the {what} is no list of keys")
    keys = []
    for item in values:
        text = strict_json.text_of(item, f"{source} of the {what}")
        if source.startswith("keyPath"):
            keys.append(load_public_key(read_key_file(text, private=False), text))
        else:
            data = strict_json.decode_base64(text, f"{source} of the {what}")
            keys.append(load_public_key(data, f"{source} of the {what}"))
    return tuple(keys)

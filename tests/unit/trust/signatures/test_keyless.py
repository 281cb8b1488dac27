"""Keyless bundles, made by a Sigstore instance of the test's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trust.keys_in_code import make_key

from lamina.errors import Error, NotFoundError, TrustError, UnsupportedError, UsageError
from lamina.trust.signatures import sigstore_bundle
from lamina.trust.signatures.keyless import KeylessSigner, check_keyless_bundle

pytest.importorskip("sigstore", reason="the package sigstore is not installed")

from tests.support.sigstore_ca import SigstoreInstance

DIGEST, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
IDENTITY, ISSUER = "dev@example.com", "https://issuer.example"


@pytest.fixture(scope="module")
def instance() -> SigstoreInstance:
    return SigstoreInstance()


@pytest.fixture
def signer(instance: SigstoreInstance, tmp_path: Path) -> KeylessSigner:
    root = tmp_path / "trusted_root.json"
    root.write_text(instance.trusted_root())
    return KeylessSigner(IDENTITY, ISSUER, str(root))


def test_a_good_bundle(instance: SigstoreInstance, signer: KeylessSigner) -> None:
    data = instance.bundle(DIGEST, annotations={"release": 7})
    assert check_keyless_bundle(data, signer, DIGEST) == (DIGEST, {"release": 7})


def test_another_identity_issuer_instance_or_digest(
    instance: SigstoreInstance, signer: KeylessSigner
) -> None:
    for data in (
        instance.bundle(DIGEST, identity="eve@example.com"),
        instance.bundle(DIGEST, issuer="https://evil.example"),
        SigstoreInstance().bundle(DIGEST),
    ):
        with pytest.raises(TrustError, match=r"not by dev@example\.com"):
            check_keyless_bundle(data, signer, DIGEST)
    with pytest.raises(TrustError, match="another digest"):
        check_keyless_bundle(instance.bundle(OTHER), signer, DIGEST)
    with pytest.raises(TrustError, match="something else"):
        data = instance.bundle(DIGEST, predicateType="https://slsa.dev/provenance/v1")
        check_keyless_bundle(data, signer, DIGEST)
    with pytest.raises(TrustError, match="by a key"):
        check_keyless_bundle(sigstore_bundle.make_bundle(make_key("P-256"), DIGEST), signer, DIGEST)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of all texts that are base64 or numbers, below a value."""
    if isinstance(value, dict):
        return [p for key, inner in value.items() for p in paths(inner, (*path, key))]
    if isinstance(value, list):
        return [p for key, inner in enumerate(value) for p in paths(inner, (*path, key))]
    return [path]


def test_every_changed_field_is_refused(instance: SigstoreInstance, signer: KeylessSigner) -> None:
    good = json.loads(instance.bundle(DIGEST))
    for path in paths(good):
        document = json.loads(json.dumps(good))
        target = document
        for step in path[:-1]:
            target = target[step]
        text = str(target[path[-1]])
        middle = len(text) // 2
        target[path[-1]] = (
            text[:middle] + ("B" if text[middle] != "B" else "C") + text[middle + 1 :]
        )
        with pytest.raises(Error):
            check_keyless_bundle(json.dumps(document).encode(), signer, DIGEST)


def test_trusted_roots(instance: SigstoreInstance, tmp_path: Path) -> None:
    data = instance.bundle(DIGEST)
    file = tmp_path / "root.json"
    with pytest.raises(NotFoundError):
        check_keyless_bundle(data, KeylessSigner(IDENTITY, ISSUER, str(file)), DIGEST)
    for text in ("", "{}", "[]", instance.trusted_root()[:-1]):
        file.write_text(text)
        with pytest.raises((UsageError, TrustError)):
            check_keyless_bundle(data, KeylessSigner(IDENTITY, ISSUER, str(file)), DIGEST)


def test_without_the_package(
    instance: SigstoreInstance, signer: KeylessSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    with pytest.raises(UnsupportedError) as caught:
        check_keyless_bundle(instance.bundle(DIGEST), signer, DIGEST)
    assert "lamina[keyless]" in str(caught.value.hint)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"verificationMaterial":{}}', b"\xff"])
def test_hostile_bundles(data: bytes, signer: KeylessSigner) -> None:
    with pytest.raises(Error):
        check_keyless_bundle(data, signer, DIGEST)


def test_an_image_in_a_layout_folder(
    instance: SigstoreInstance, signer: KeylessSigner, tmp_path: Path
) -> None:
    """By the command line: the name is wanted as from a key, unless it is waived."""
    from tests.unit.registry.images import make_image

    from lamina.cli.dispatch import run_command
    from lamina.oci.reference import parse_reference
    from lamina.registry.open_repository import open_repository
    from lamina.trust.signatures.sigstore_bundle_store import add_bundle

    name = "registry.example/app:v1"
    make_image(tmp_path / "image", "v1")
    reference = f"oci:{tmp_path}/image:v1"
    with open_repository(parse_reference(reference), write=True) as repository:
        descriptor = repository.manifest()[0]
        named = {"docker-reference": name, "release": 7}
        add_bundle(repository, descriptor, instance.bundle(descriptor.digest, annotations=named))
    who = ["--certificate-identity", IDENTITY, "--certificate-oidc-issuer", ISSUER]
    who += ["--trusted-root", signer.trusted_root]
    verify = ["verify", "-q", "--identity", name, *who]
    assert run_command([*verify, "--min-release", "7", reference]) == 0
    assert run_command([*verify, "--min-release", "8", reference]) == 12
    assert run_command(["verify", "-q", *who, reference]) == 12
    assert run_command(["verify", "-q", *who, "--any-name", reference]) == 0
    assert run_command([*verify, "--certificate-identity", "eve@example.com", reference]) == 12
    assert run_command(["verify", "-q", *who[:2], reference]) == 2
    policy = tmp_path / "policy.json"

    def by_policy(email: str, **more: object) -> int:
        demand = {
            "type": "sigstoreSigned",
            "fulcio": {"oidcIssuer": ISSUER, "subjectEmail": email},
            "trustedRoot": signer.trusted_root,
            "signedIdentity": {"type": "exactReference", "dockerReference": name},
            **more,
        }
        policy.write_text(json.dumps({"default": [demand]}))
        return run_command(["verify", "-q", "--policy", str(policy), reference])

    assert by_policy(IDENTITY) == by_policy(IDENTITY, minimumRelease=7) == 0
    assert by_policy("eve@example.com") == by_policy(IDENTITY, minimumRelease=8) == 12
    assert by_policy(IDENTITY, signedIdentity={"type": "matchExact"}) == 12
    assert by_policy(IDENTITY, trustedRoot=str(tmp_path / "absent")) == 7
    assert run_command([*verify, "--key", "x", reference]) == 2

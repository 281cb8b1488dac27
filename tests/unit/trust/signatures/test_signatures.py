"""Signatures over images: the payload, the matrix of identities, policies, and anchors."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from tests.unit.registry.images import make_image
from tests.unit.trust.keys_in_code import make_key, raw_key

from lamina.errors import (
    FormatError,
    NotFoundError,
    TrustError,
    UnsupportedError,
    UsageError,
)
from lamina.oci.manifest import OCI_MANIFEST, describe
from lamina.oci.reference import Reference, parse_reference
from lamina.oci.verity_manifest import VERITY_ROOT
from lamina.registry.open_repository import open_repository
from lamina.registry.repository import Repository
from lamina.trust.signatures import attachments, image_signature, signature
from lamina.trust.signatures.attachments import Attached, add_signature
from lamina.trust.signatures.identity import ANY_NAME, IdentityRule, parse_rule
from lamina.trust.signatures.image_signature import (
    Demand,
    Verified,
    check_signature,
    sign_image,
    verify_image,
)
from lamina.trust.signatures.policy import load_policy, parse_policy, scopes_of
from lamina.trust.signatures.simple_signing import Payload

KEY, FOREIGN = make_key("P-256"), make_key("P-256", 1)
DIGEST = "sha256:" + "ab" * 32
NAME = "127.0.0.1:5055/t/x"
IMAGE = parse_reference(f"docker://{NAME}:v1")
DEFAULT, REPOSITORY = IdentityRule(), IdentityRule("matchRepository")


def signed(payload: bytes, key: Any = KEY) -> Attached:
    return Attached(payload, signature.sign(key, payload))


def payload(reference: str = f"{NAME}:v1", digest: str = DIGEST, optional: Any = None) -> bytes:
    return Payload(reference, digest, optional or {}).encode()


def accepts(
    entry: Attached, rule: IdentityRule = DEFAULT, wanted: Reference = IMAGE, **more: Any
) -> bool:
    demand = Demand((KEY.public(),), rule, **more)
    try:
        check_signature(demand, entry, DIGEST, wanted)
    except (TrustError, FormatError):
        return False
    return True


@pytest.mark.parametrize("kind", ["RSA", "P-256", "P-384", "P-521", "Ed25519"])
def test_every_kind_of_key(kind: str) -> None:
    key = make_key(kind)
    made = signature.sign(key, b"data")
    assert signature.is_signed_by(key.public(), made, b"data")
    assert not signature.is_signed_by(key.public(), made, b"Data")
    assert not signature.is_signed_by(key.public(), made[:-1], b"data")
    assert not signature.is_signed_by(make_key(kind, 7).public(), made, b"data")
    assert not signature.is_signed_by(make_key("P-256", 5).public(), b"", b"data")


# (name in the signature, accepted by the default rule, accepted by matchRepository)
MATRIX = [
    (f"{NAME}:v1", True, True),
    (NAME, False, True),
    (f"{NAME}:v2", False, True),
    ("127.0.0.1:5055/t/other:v1", False, False),
    ("127.0.0.1:5056/t/x:v1", False, False),
    (f"{NAME}:v1@{DIGEST}", True, True),
    ("", False, False),
    ("../x", False, False),
]


@pytest.mark.parametrize(("name", "default", "repository"), MATRIX)
def test_the_matrix_of_names(name: str, default: bool, repository: bool) -> None:
    entry = signed(payload(name))
    assert accepts(entry) == default
    assert accepts(entry, REPOSITORY) == repository


def test_latest_is_not_no_tag() -> None:
    wanted = parse_reference(f"docker://{NAME}")
    assert wanted.tag == "latest"
    assert not accepts(signed(payload(NAME)), DEFAULT, wanted)
    assert accepts(signed(payload(f"{NAME}:latest")), DEFAULT, wanted)


def test_a_pull_by_digest() -> None:
    wanted = parse_reference(f"docker://{NAME}@{DIGEST}")
    assert accepts(signed(payload()), DEFAULT, wanted)
    assert not accepts(signed(payload()), IdentityRule("matchExact"), wanted)
    assert not accepts(signed(payload("127.0.0.1:5055/t/other:v1")), DEFAULT, wanted)


def test_rules_that_name_the_signer() -> None:
    entry = signed(payload("registry.example/app:prod"))
    rule = lambda kind, **fields: parse_rule({"type": kind, **fields}, "x")  # noqa: E731
    assert accepts(entry, rule("exactReference", dockerReference="registry.example/app:prod"))
    assert not accepts(entry, rule("exactReference", dockerReference="registry.example/app:v1"))
    assert accepts(entry, rule("exactRepository", dockerRepository="registry.example/app"))
    assert not accepts(entry, rule("exactRepository", dockerRepository="registry.example/ap"))
    remapped = signed(payload("registry.example/team/x:v1"))
    fields = {"prefix": "127.0.0.1:5055/t", "signedPrefix": "registry.example/team"}
    assert accepts(remapped, rule("remapIdentity", **fields))
    assert not accepts(remapped, rule("remapIdentity", **{**fields, "prefix": "127.0.0.1:5055/"}))
    assert not accepts(entry, rule("remapIdentity", **fields))


@pytest.mark.parametrize("rule", [DEFAULT, REPOSITORY], ids=lambda rule: rule.kind)
def test_digest_and_key(rule: IdentityRule) -> None:
    assert accepts(signed(payload()), rule)
    assert not accepts(signed(payload(digest="sha256:" + "cd" * 32)), rule)
    assert not accepts(signed(payload(), FOREIGN), rule)
    assert not accepts(Attached(payload(), b""), rule)


def _variants() -> list[bytes]:
    document = json.loads(payload())
    critical = document["critical"]
    return [
        json.dumps({**document, "critical": {**critical, "more": 1}}).encode(),
        json.dumps({**document, "more": 1}).encode(),
        json.dumps(
            {**document, "critical": {**critical, "type": "atomic container signature"}}
        ).encode(),
        json.dumps({**document, "optional": {"timestamp": 1.5}}).encode(),
        json.dumps({**document, "optional": []}).encode(),
        json.dumps({"critical": critical}).encode(),
        json.dumps({**document, "critical": {**critical, "image": {}}}).encode(),
        payload().replace(b'"optional"', b'"optional":null,"optional"'),
        payload()[:-1],
        b"",
        b"[]",
        b"\xff",
        payload() + b"{}",
    ]


@pytest.mark.parametrize("number", range(13))
def test_payloads_are_strict(number: int) -> None:
    """Each is signed by the right key: cosign itself takes three of these."""
    assert not accepts(signed(_variants()[number]))
    with pytest.raises(FormatError):
        Payload.decode(_variants()[number])


def test_optional_parts_that_are_fine() -> None:
    for optional in (None, {"creator": "x", "timestamp": 1}, {"release": 3}):
        assert accepts(signed(payload(optional=optional)))


def test_rollback_to_an_older_signed_image_is_refused() -> None:
    old, new = (signed(payload(optional={"release": n, "suite": "cc-rafs/1"})) for n in (6, 7))
    assert accepts(old, minimum_release=6)
    assert not accepts(old, minimum_release=7)
    assert accepts(new, minimum_release=7, suite="cc-rafs/1")
    assert not accepts(new, suite="cc-rafs/2")
    for wrong in (None, "9", 9.0, True, [9]):
        assert not accepts(signed(payload(optional={"release": wrong})), minimum_release=1)
    assert accepts(old, annotations={"suite": "cc-rafs/1"})
    assert not accepts(old, annotations={"owner": "me"})


@pytest.mark.parametrize(
    "stated, words",
    [
        ({}, "states no release, and at least 7 is demanded"),
        ({"release": "9"}, "states the release '9', which is no number but a text"),
        ({"release": True}, "which is no number but"),
        ({"release": 6}, "is for release 6, older than 7"),
    ],
)
def test_words_of_a_release_that_is_not_enough(
    repository: Repository, stated: dict[str, Any], words: str
) -> None:
    descriptor = repository.resolve()
    made = signed(payload(digest=descriptor.digest, optional=stated))
    add_signature(repository, descriptor.digest, made)
    demand = Demand((KEY.public(),), IdentityRule(ANY_NAME), minimum_release=7)
    with pytest.raises(TrustError) as failure:
        verify_image(repository, [demand], IMAGE)
    assert words in f"{failure.value} {failure.value.hint}"


# ---- in repositories ---------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Any:
    make_image(tmp_path / "l", "v1")
    with open_repository(parse_reference(f"oci:{tmp_path}/l:v1"), write=True) as opened:
        yield opened


def test_sign_and_verify(repository: Repository) -> None:
    demand = Demand((KEY.public(),))
    for rule in (DEFAULT, REPOSITORY, IdentityRule(ANY_NAME)):
        with pytest.raises(TrustError, match="no signature"):
            verify_image(repository, [Demand((KEY.public(),), rule)], IMAGE)
    with pytest.raises(UsageError, match="no name"):
        sign_image(repository, KEY)
    sign_image(repository, FOREIGN, identity=f"{NAME}:v1")
    with pytest.raises(TrustError, match="not by a key"):
        verify_image(repository, [demand], IMAGE)
    descriptor, _ = sign_image(repository, KEY, identity=f"{NAME}:v1", optional={"release": 2})
    verified = verify_image(repository, [demand], IMAGE)
    assert verified.descriptor == descriptor
    assert verified.payloads[0].optional == {"release": 2}
    assert len(attachments.read_signatures(repository, descriptor.digest)) == 2
    with pytest.raises(TrustError, match="another name"):
        verify_image(repository, [demand], parse_reference(f"docker://{NAME}:v2"))
    with pytest.raises(TrustError):
        verify_image(repository, [demand, Demand((make_key("P-256", 3).public(),))], IMAGE)
    both = [demand, Demand((FOREIGN.public(),))]
    assert len(verify_image(repository, both, IMAGE).payloads) == 2


def test_the_release_of_several_signatures(repository: Repository) -> None:
    """The highest that one signer states, since each signature would do and a registry can only
    withhold some; the lowest of all who have to sign.
    """
    one, two = Demand((KEY.public(),)), Demand((FOREIGN.public(),))
    for key, stated in ((KEY, 5), (KEY, 9), (KEY, 7), (FOREIGN, 6), (FOREIGN, 3)):
        sign_image(repository, key, identity=f"{NAME}:v1", optional={"release": stated})
    verified = verify_image(repository, [one], IMAGE)
    assert verified.release == 9
    assert verify_image(repository, [two], IMAGE).release == 6
    assert verify_image(repository, [one, two], IMAGE).release == 6
    assert verify_image(repository, [two, one], IMAGE).release == 6
    unnumbered = make_key("P-256", 3)
    sign_image(repository, unnumbered, identity=f"{NAME}:v1", optional={"release": "10"})
    silent = Demand((unnumbered.public(),))
    assert verify_image(repository, [silent], IMAGE).release is None
    assert verify_image(repository, [silent, two], IMAGE).release == 6
    # What proved it is kept, and nothing else.
    assert {entry.payload for entry in verified.signatures.of_tag} == {
        Payload(f"{NAME}:v1", verified.descriptor.digest, {"release": 9}).encode()
    }
    kept = verified.signatures
    again = image_signature.prove(verified.descriptor, verified.data, kept, [one], IMAGE)
    assert again.release == 9


def test_a_tag_moved_to_another_image(repository: Repository, tmp_path: Path) -> None:
    """The signature of the old image, copied to where that of the new one must be, is refused."""
    old, _ = sign_image(repository, KEY, identity=f"{NAME}:v1")
    found = attachments.read_signatures(repository, old.digest)
    make_image(tmp_path / "l", "v1", seed=9)
    new = repository.resolve()
    assert new.digest != old.digest
    attachments.add_signature(repository, new.digest, found[0])
    with pytest.raises(TrustError, match="another digest"):
        verify_image(repository, [Demand((KEY.public(),))], IMAGE)


def test_malformed_entries_do_not_hide_a_good_one(repository: Repository) -> None:
    from lamina.oci import manifest as m

    descriptor, _ = sign_image(repository, KEY, identity=f"{NAME}:v1")
    tag = attachments.signature_tag(descriptor.digest)
    document = json.loads(repository.manifest(tag)[1])
    good = document["layers"][0]
    empty = m.describe(attachments.SIMPLE_SIGNING, b"{}")
    repository.push_blob(empty, io.BytesIO(b"{}"))
    strange = [
        {"mediaType": empty.media_type, "digest": empty.digest, "size": 2, "annotations": extra}
        for extra in ({}, {attachments.SIGNATURE: "!"}, {attachments.SIGNATURE: "AAAA"})
    ]
    absent = {**strange[2], "digest": "sha256:" + "00" * 32}
    document["layers"] = [*strange, absent, {**good, "mediaType": "text/plain"}, good]
    repository.push_manifest(tag, m.OCI_MANIFEST, json.dumps(document).encode())
    assert verify_image(repository, [Demand((KEY.public(),))], IMAGE)
    document["layers"] = [good] * 200
    repository.push_manifest(tag, m.OCI_MANIFEST, json.dumps(document).encode())
    with pytest.raises(FormatError, match="128"):
        verify_image(repository, [Demand((KEY.public(),))], IMAGE)


def test_names_to_sign(tmp_path: Path) -> None:
    check = image_signature._checked_identity
    assert check(None, IMAGE) == f"{NAME}:v1"
    assert check("app:2", IMAGE) == "docker.io/library/app:2"
    with pytest.raises(UsageError, match="no tag"):
        check(None, parse_reference(f"docker://{NAME}@{DIGEST}"))


def test_bundles_alone_are_enough(repository: Repository) -> None:
    """As cosign 3 leaves them: nothing under the tag of signatures."""
    from lamina.trust.signatures import sigstore_bundle, sigstore_bundle_store

    descriptor = repository.resolve()
    demand = Demand((KEY.public(),))
    data = sigstore_bundle.make_bundle(KEY, descriptor.digest)
    sigstore_bundle_store.add_bundle(repository, descriptor, data)
    with pytest.raises(TrustError, match="states no name"):
        verify_image(repository, [demand], IMAGE)
    loose = Demand((KEY.public(),), IdentityRule(ANY_NAME))
    assert verify_image(repository, [loose], IMAGE).payloads
    with pytest.raises(TrustError, match="not by a key"):
        verify_image(repository, [Demand((FOREIGN.public(),), IdentityRule(ANY_NAME))], IMAGE)
    annotations = {"docker-reference": f"{NAME}:v1", "release": 4}
    data = sigstore_bundle.make_bundle(KEY, descriptor.digest, annotations)
    sigstore_bundle_store.add_bundle(repository, descriptor, data)
    assert verify_image(repository, [demand], IMAGE).payloads[0].optional == {"release": 4}
    assert len(sigstore_bundle_store.read_bundles(repository, descriptor.digest)) == 2
    with pytest.raises(TrustError, match="older"):
        verify_image(repository, [Demand((KEY.public(),), minimum_release=5)], IMAGE)


def test_referrers_that_cannot_be_read(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody who may attach something could make an image unusable otherwise."""
    from lamina.oci import manifest as m
    from lamina.trust.signatures import sigstore_bundle_store

    descriptor, _ = sign_image(repository, KEY, identity=f"{NAME}:v1")
    absent = m.describe(m.OCI_MANIFEST, b"{}")
    odd = m.describe(m.OCI_MANIFEST, b"no manifest")
    repository.push_blob(odd, io.BytesIO(b"no manifest"))
    listed = sigstore_bundle_store.list_referrers
    monkeypatch.setattr(
        sigstore_bundle_store, "list_referrers", lambda *args: [absent, odd, *listed(*args)]
    )
    assert verify_image(repository, [Demand((KEY.public(),))], IMAGE)
    assert sigstore_bundle_store.read_bundles(repository, descriptor.digest) is not None


def test_a_bundle_that_refers_to_another_image(repository: Repository, tmp_path: Path) -> None:
    from lamina.oci import manifest as m
    from lamina.registry.referrers import fallback_tag
    from lamina.trust.signatures import sigstore_bundle_store

    old, _ = sign_image(repository, KEY, identity=f"{NAME}:v1")
    index = repository.manifest(fallback_tag(old.digest))[1]
    make_image(tmp_path / "l", "v1", seed=9)
    new = repository.resolve()
    repository.push_manifest(fallback_tag(new.digest), m.OCI_INDEX, index)
    assert sigstore_bundle_store.read_bundles(repository, new.digest) == []
    with pytest.raises(TrustError, match="no signature"):
        verify_image(repository, [Demand((KEY.public(),))], IMAGE)


# ---- policies ----------------------------------------------------------------------------------

DATA = base64.b64encode(KEY.public().pem()).decode()
SIGNED = {"type": "sigstoreSigned", "keyData": DATA}
FULCIO = {"oidcIssuer": "https://issuer.example", "subjectEmail": "dev@example.com"}
KEYLESS: dict[str, Any] = {"type": "sigstoreSigned", "fulcio": FULCIO}


def policy(*requirements: Any, scope: str = NAME, **more: Any) -> bytes:
    document = {
        "default": [{"type": "reject"}],
        "transports": {"docker": {scope: list(requirements)}},
        **more,
    }
    return json.dumps(document).encode()


def test_a_policy_decides(repository: Repository) -> None:
    found = parse_policy(policy(SIGNED))
    with pytest.raises(TrustError, match="no signature"):
        found.check(repository, IMAGE)
    sign_image(repository, KEY, identity=f"{NAME}:v1")
    assert found.check(repository, IMAGE).payloads
    with pytest.raises(TrustError, match="rejects"):
        found.check(repository, parse_reference("docker://elsewhere.example/x:v1"))
    with pytest.raises(TrustError, match="rejects"):
        parse_policy(policy(SIGNED, {"type": "reject"})).check(repository, IMAGE)
    anything = parse_policy(policy({"type": "insecureAcceptAnything"}))
    assert anything.check(repository, IMAGE).payloads == ()
    for kind in ({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}, {
        **KEYLESS, "fulcio": {**KEYLESS["fulcio"], "caPath": "/x"}, "rekorPublicKeyPath": "/y",
    }, {"type": "sigstoreSigned", "pki": {}}, {**SIGNED, "rekorPublicKeyPath": "/y"}):  # fmt: skip
        with pytest.raises(UnsupportedError) as caught:
            parse_policy(policy(kind)).check(repository, IMAGE)
        assert kind["type"] == "signedBy" or "trustedRoot" in str(caught.value.hint)


def test_keys_of_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "k.pub"
    file.write_bytes(FOREIGN.public().pem())
    for keys in ({"keyPath": str(file)}, {"keyPaths": [str(file)]}, {"keyDatas": [DATA, DATA]}):
        requirement = parse_policy(policy({"type": "sigstoreSigned", **keys})).transports["docker"]
        demand = requirement[NAME][0].demand
        assert demand is not None
        assert len(demand.keys) == (2 if "keyDatas" in keys else 1)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[]",
        policy(),
        policy(SIGNED, more=1),
        policy({**SIGNED, "more": 1}),
        policy(5),
        policy({"type": "unknown"}),
        policy({"type": ["reject"]}),
        policy({"type": "sigstoreSigned"}),
        policy({**SIGNED, "keyPath": "/x"}),
        policy({"type": "sigstoreSigned", "keyData": "AAAA"}),
        policy({"type": "sigstoreSigned", "keyPath": "/absent"}),
        policy({"type": "reject", "x": 1}),
        policy({**SIGNED, "signedIdentity": {"type": "x"}}),
        policy({**SIGNED, "signedIdentity": 5}),
        policy({**SIGNED, "signedIdentity": {"type": "matchExact", "more": 1}}),
        policy({**SIGNED, "signedIdentity": {"type": "exactReference"}}),
        policy({**SIGNED, "signedIdentity": {"type": "exactRepository", "dockerRepository": ".."}}),
        policy({"type": "sigstoreSigned", "keyDatas": []}),
        policy({**SIGNED, "trustedRoot": "/root.json"}),
        policy({**SIGNED, **KEYLESS}),
        policy({**KEYLESS, "trustedRoot": 5}),
        policy({**KEYLESS, "trustedRoot": "/root.json", "rekorPublicKeyPath": "/y"}),
        policy({**KEYLESS, "trustedRoot": "/root.json", "fulcio": {**FULCIO, "caData": "AAAA"}}),
        policy({**KEYLESS, "fulcio": {"oidcIssuer": "https://issuer.example"}}),
        policy({**KEYLESS, "fulcio": {**FULCIO, "more": 1}}),
        policy({**KEYLESS, "fulcio": {**FULCIO, "subjectEmail": 5}}),
        policy({**KEYLESS, "fulcio": 5}),
        b'{"default":[{"type":"reject"}],"default":[]}',
        b'{"default":[{"type":"reject"}],"transports":{"docker":[]}}',
        b'{"default":[]}',
    ],
)
def test_invalid_policies(data: bytes) -> None:
    with pytest.raises((FormatError, NotFoundError)):
        parse_policy(data)


def test_scopes() -> None:
    reference = parse_reference("docker://a.b.example:5000/n/r:t")
    assert list(scopes_of(reference)) == [
        "a.b.example:5000/n/r:t", "a.b.example:5000/n/r", "a.b.example:5000/n",
        "a.b.example:5000", "*.b.example", "*.example", "",
    ]  # fmt: skip
    digest = parse_reference(f"docker://h.example/r@{DIGEST}")
    assert next(iter(scopes_of(digest))) == f"h.example/r@{DIGEST}"
    assert list(scopes_of(parse_reference("oci:/a/b:t")))[:2] == ["/a/b:t", "/a/b"]


def test_scopes_of_local_images_are_real_paths_too(tmp_path: Path) -> None:
    """Or a rule that rejects would not be found behind a link."""
    (tmp_path / "data/prod/x").mkdir(parents=True)
    (tmp_path / "srv").symlink_to("data")
    rules = {
        f"{tmp_path}/srv/prod": [{"type": "reject"}],
        f"{tmp_path}/data/prod/x:v1": [{"type": "insecureAcceptAnything"}],
        f"{tmp_path}/srv/prod/x:v1": [{"type": "reject"}],
    }
    document = {"default": [{"type": "insecureAcceptAnything"}], "transports": {"oci": rules}}
    found = parse_policy(json.dumps(document).encode())
    for text in (f"{tmp_path}/srv/prod/x:v2", f"{tmp_path}/data/prod/y"):
        _, [only] = found.requirements(parse_reference(f"oci:{text}"))
        assert only.kind == "reject"
    _, both = found.requirements(parse_reference(f"oci:{tmp_path}/data/prod/x:v1"))
    assert sorted(each.kind for each in both) == ["insecureAcceptAnything", "reject"]


def test_a_local_image_has_one_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its path is written."""
    (tmp_path / "prod/x").mkdir(parents=True)
    (tmp_path / "link").symlink_to("prod")
    monkeypatch.chdir(tmp_path)
    for text in ("prod/x", "./prod//x", f"{tmp_path}/prod/../prod/x", "link/x"):
        scopes = list(scopes_of(parse_reference(f"oci:{text}:v1")))
        assert scopes[:3] == [f"{tmp_path}/prod/x:v1", f"{tmp_path}/prod/x", f"{tmp_path}/prod"]


def test_the_most_specific_scope_decides_alone() -> None:
    document = {
        "default": [{"type": "reject"}],
        "transports": {
            "docker": {
                NAME: [SIGNED],
                f"{NAME}:v1": [{"type": "insecureAcceptAnything"}],
                "": [SIGNED],
            }
        },
    }
    found = parse_policy(json.dumps(document).encode())
    kinds: Callable[[str], tuple[str, str]] = lambda text: (  # noqa: E731
        found.requirements(parse_reference(text))[0],
        found.requirements(parse_reference(text))[1][0].kind,
    )
    assert kinds(f"docker://{NAME}:v1") == (f"{NAME}:v1", "insecureAcceptAnything")
    assert kinds(f"docker://{NAME}:v2") == (NAME, "sigstoreSigned")
    assert kinds("docker://else.example/x") == ("all of docker", "sigstoreSigned")
    assert kinds("oci:x:y") == ("default", "reject")


def stating(*roots: object) -> Verified:
    digest = "sha256:" + 64 * "0"
    payloads = (Payload("docker://h/x:1", digest, {VERITY_ROOT: root}) for root in roots)
    return Verified(describe(OCI_MANIFEST, b"{}"), b"{}", tuple(payloads))


def test_the_root_hash_of_a_disk_is_stated_once_or_not_at_all() -> None:
    assert stating(None).disk_root is None
    assert stating(64 * "a", 64 * "a", None).disk_root == 64 * "a"
    for wrong in (["a"], 7, "", "xyz", 63 * "a", {"a": 1}):
        with pytest.raises(TrustError, match="root hash that is none"):
            _ = stating(64 * "a", wrong).disk_root
    with pytest.raises(TrustError, match="several root hashes"):
        _ = stating(64 * "a", 64 * "b").disk_root


def test_relative_paths_of_a_policy_are_from_its_folder_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    key = (
        raw_key("P-256")
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "keys" / "own.pub").write_bytes(key)
    (tmp_path / "other.pub").write_bytes(key)
    wanted: dict[str, Any] = {"type": "sigstoreSigned", "keyPath": "keys/own.pub"}
    several = {"type": "sigstoreSigned", "keyPaths": ["keys/own.pub", str(tmp_path / "other.pub")]}
    policy = tmp_path / "policy.json"
    policy.write_text(
        json.dumps({"default": [wanted], "transports": {"docker": {"keyPath": [several]}}})
    )
    monkeypatch.chdir("/")
    load_policy(str(policy))
    monkeypatch.chdir(tmp_path)
    load_policy("policy.json")
    wanted["keyPath"] = "own.pub"
    policy.write_text(json.dumps({"default": [wanted]}))
    with pytest.raises(NotFoundError, match=f"{tmp_path}/own.pub"):
        load_policy("policy.json")

"""Encryption of layers: the specification's vectors, round trips, and every manipulation."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.registry.images import make_image, make_index
from tests.unit.trust.keys_in_code import make_key, pem

from lamina.errors import (
    Error,
    FormatError,
    IntegrityError,
    NotFoundError,
    TrustError,
    UnsupportedError,
    UsageError,
)
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.layout import LayoutRepository
from lamina.registry.open_repository import open_repository
from lamina.trust.crypto import ctr_hmac
from lamina.trust.crypto.secret import Secret
from lamina.trust.encryption import image_encryption, recipients
from lamina.trust.encryption.image_encryption import decrypt_image, encrypt_image
from lamina.trust.encryption.layer_options import PrivateOptions, PublicOptions
from lamina.trust.encryption.recipients import DecryptionKeys, Recipients

KEY, NONCE = bytes(range(32)), bytes(range(0xF0, 0x100))
PLAIN = b"nydus-like confidential layer\n" * 2
SEALED = bytes.fromhex(
    "fc79a9f850bbeca2310cc6372f5c057dae3a1534984b58e102c62c44387de8f7fd19527678719efd58e64f7e"
    "f33d96ea271caa4cbad08b436a7eaefe"
)
HMAC = bytes.fromhex("acab6dd04f8df349d84eea7937f3064918229ead463e8bdbd0c85b181a0dbe88")
PUBLIC = (
    b'{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"rKtt0E+N80nYTup5N/MGSRginq1GPovb0MhbGBoNvog=",'
    b'"cipheroptions":{}}'
)
PRIVATE = (
    b'{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","digest":"sha256:23d374b14e284424'
    b'840809bf1b41ccf10d265c30ca296bd3988ea79a91165fb1","cipheroptions":{"nonce":"8PHy8/T19vf4+fr7'
    b'/P3+/w=="}}'
)
READER = make_key("P-256")
KEYS = DecryptionKeys((READER,))


def test_the_vector_with_a_counter_that_carries() -> None:
    encryptor = ctr_hmac.Encryptor(Secret(KEY), NONCE)
    assert encryptor.update(PLAIN[:7]) + encryptor.update(PLAIN[7:]) == SEALED
    assert encryptor.hmac() == HMAC
    assert ctr_hmac.DecryptingStream(io.BytesIO(SEALED), Secret(KEY), NONCE).read() == PLAIN
    assert PublicOptions(HMAC).encode() == PUBLIC
    assert PublicOptions.decode(PUBLIC).hmac == HMAC
    private = PrivateOptions.decode(PRIVATE)
    assert (private.key, private.nonce) == (Secret(KEY), NONCE)
    assert private.digest == "sha256:" + hashlib.sha256(PLAIN).hexdigest()
    assert private.encode() == PRIVATE
    assert "AAECAw" not in repr(private)


@given(st.integers(0, 40), st.integers(1, 15))
def test_the_counter_carries_through_all_its_bytes(low: int, carried: int) -> None:
    """The counter block i is nonce + i modulo 2^128, whatever has to be carried."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    start = (1 << 8 * carried + 8) - 1 - low
    for number in (start, (1 << 128) - 1 - low):
        blocks = [((number + i) % (1 << 128)).to_bytes(16, "big") for i in range(50)]
        single = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
        stream = single.update(b"".join(blocks))
        sealed = ctr_hmac.Encryptor(Secret(KEY), blocks[0]).update(bytes(len(stream)))
        assert sealed == stream


@given(st.binary(max_size=5000), st.integers(1, 700))
def test_pieces_do_not_matter(data: bytes, step: int) -> None:
    encryptor = ctr_hmac.Encryptor(Secret(KEY), NONCE)
    sealed = b"".join(encryptor.update(data[i : i + step]) for i in range(0, len(data), step))
    assert len(sealed) == len(data)
    with ctr_hmac.DecryptingStream(io.BytesIO(sealed), Secret(KEY), NONCE) as stream:
        assert b"".join(iter(lambda: stream.read(step), b"")) == data
    check = ctr_hmac.new_hmac(Secret(KEY))
    check.update(sealed)
    ctr_hmac.check_hmac(check, encryptor.hmac(), "x")
    with pytest.raises(IntegrityError):
        ctr_hmac.check_hmac(check, bytes(32), "x")


@pytest.mark.parametrize(
    "change",
    [
        {"cipher": "AES_128_CTR"}, {"cipher": 5}, {"hmac": "AAAA"}, {"hmac": None}, {"more": 1},
        {"cipheroptions": {"nonce": "8PHy8/T19vf4+fr7/P3+/w=="}}, {"cipheroptions": []},
    ],
)  # fmt: skip
def test_public_options_are_strict(change: dict[str, Any]) -> None:
    with pytest.raises((FormatError, UnsupportedError)):
        PublicOptions.decode(json.dumps({**json.loads(PUBLIC), **change}).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"symkey": "AAAA"}, {"symkey": 5}, {"digest": ""}, {"digest": None}, {"digest": "md5:00"},
        {"cipheroptions": {}}, {"cipheroptions": {"nonce": "AAAA"}}, {"more": 1},
        {"cipheroptions": {"nonce": "8PHy8/T19vf4+fr7/P3+/w==", "x": "AA=="}},
    ],
)  # fmt: skip
def test_private_options_are_strict(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        PrivateOptions.decode(json.dumps({**json.loads(PRIVATE), **change}).encode())
    assert "AAECAw" not in str(caught.value)
    with pytest.raises(FormatError, match="twice"):
        PrivateOptions.decode(PRIVATE.replace(b'{"symkey"', b'{"digest":"x","symkey"'))


# ---- images ----------------------------------------------------------------------------------


def run(
    action: Callable[..., image_encryption.Changed],
    source: str,
    target: str,
    *args: Any,
    **more: Any,
) -> image_encryption.Changed:
    with (
        open_repository(parse_reference(source)) as one,
        open_repository(parse_reference(target), write=True) as other,
    ):
        return action(one, other, *args, **more)


def layers_of(reference: str) -> tuple[m.Descriptor, ...]:
    with open_repository(parse_reference(reference)) as repository:
        return m.parse_image_manifest(repository.manifest()[1]).layers


@pytest.fixture
def plain(tmp_path: Path) -> str:
    make_image(tmp_path / "plain", "v1")
    return f"oci:{tmp_path}/plain:v1"


@pytest.fixture
def sealed(plain: str, tmp_path: Path) -> str:
    target = f"oci:{tmp_path}/sealed:v1"
    run(encrypt_image, plain, target, Recipients((READER.public(),)))
    return target


def test_round_trip(plain: str, sealed: str, tmp_path: Path) -> None:
    for before, after in zip(layers_of(plain), layers_of(sealed), strict=True):
        assert after.media_type == before.media_type + "+encrypted"
        assert (after.size, after.digest == before.digest) == (before.size, False)
        assert after.annotations.keys() == {recipients.JWE_KEYS, recipients.PUBLIC_OPTIONS}
    changed = run(decrypt_image, sealed, f"oci:{tmp_path}/back:v1", KEYS)
    assert changed.layers == (0, 1)
    with open_repository(parse_reference(plain)) as repository:
        assert changed.descriptor == repository.resolve()


def test_layers_can_be_chosen(plain: str, tmp_path: Path) -> None:
    target = f"oci:{tmp_path}/some:v1"
    assert run(encrypt_image, plain, target, _to_reader(), layers=[-1]).layers == (1,)
    first, second = layers_of(target)
    assert (image_encryption.is_encrypted(first), image_encryption.is_encrypted(second)) == (0, 1)
    for wrong in ([2], [-3], []):
        with pytest.raises(UsageError, match="0 to 1"):
            run(encrypt_image, plain, target, _to_reader(), layers=wrong)


def _to_reader() -> Recipients:
    return Recipients((READER.public(),))


def test_every_layer_has_a_key_of_its_own(sealed: str) -> None:
    options = [image_encryption.read_options(layer, KEYS)[1] for layer in layers_of(sealed)]
    assert options[0].key != options[1].key
    assert options[0].nonce != options[1].nonce


def test_progress_has_totals(plain: str, tmp_path: Path) -> None:
    """Of each phase what there is in all, and in the end as much was done."""
    where, back = (f"oci:{tmp_path}/{name}:v1" for name in ("told", "told-back"))
    told: dict[tuple[str, int], int] = {}

    def progress(phase: str, total_bytes: int, done_bytes: int) -> None:
        told[phase, total_bytes] = told.get((phase, total_bytes), 0) + done_bytes

    run(encrypt_image, plain, where, _to_reader(), layers=[0], progress=progress)
    lower, upper = layers_of(where)
    (_, all_bytes), (_, pushed_bytes) = told
    assert told == {("encrypt", lower.size): all_bytes, ("push", pushed_bytes): pushed_bytes}
    assert pushed_bytes > all_bytes + upper.size, "the configuration too"
    told.clear()
    run(decrypt_image, where, back, KEYS, progress=progress)
    assert told == {("decrypt", lower.size): lower.size, ("push", pushed_bytes): pushed_bytes}


def test_an_index_gives_one_platform(tmp_path: Path) -> None:
    make_index(tmp_path / "plain", "multi")
    target = f"oci:{tmp_path}/one:v1"
    source = f"oci:{tmp_path}/plain:multi"
    run(encrypt_image, source, target, _to_reader(), platform="linux/arm64")
    with open_repository(parse_reference(target)) as repository:
        manifest = m.parse_image_manifest(repository.manifest()[1])
        with repository.open_blob(manifest.config) as stream:
            assert m.parse_config(stream.read()).architecture == "arm64"


def test_adding_a_recipient(sealed: str, tmp_path: Path) -> None:
    other = make_key("RSA")
    target = f"oci:{tmp_path}/two:v1"
    more = Recipients((other.public(),))
    assert run(encrypt_image, sealed, target, more).layers == ()
    assert run(encrypt_image, sealed, target, more, keys=KEYS).layers == (0, 1)
    for before, after in zip(layers_of(sealed), layers_of(target), strict=True):
        assert before.digest == after.digest
        old, new = (layer.annotations[recipients.JWE_KEYS] for layer in (before, after))
        assert new.startswith(old + ",")
        pubopts = recipients.PUBLIC_OPTIONS
        assert before.annotations[pubopts] == after.annotations[pubopts]
    for number, key in enumerate((READER, other)):
        run(decrypt_image, target, f"oci:{tmp_path}/back{number}:v1", DecryptionKeys((key,)))
    with pytest.raises(TrustError):
        run(encrypt_image, sealed, target, more, keys=DecryptionKeys((other,)))


def test_no_key_and_the_wrong_key(sealed: str, plain: str, tmp_path: Path) -> None:
    for keys in (DecryptionKeys(), DecryptionKeys((make_key("P-256", 1), make_key("RSA")))):
        with pytest.raises(TrustError, match="no key opens"):
            run(decrypt_image, sealed, f"oci:{tmp_path}/back:v1", keys)
    with pytest.raises(UsageError, match="no encrypted layer"):
        run(decrypt_image, plain, f"oci:{tmp_path}/back:v1", KEYS)
    with pytest.raises(UsageError, match="nobody"):
        run(encrypt_image, plain, f"oci:{tmp_path}/back:v1", Recipients())
    with pytest.raises(NotFoundError):
        layers_of(f"oci:{tmp_path}/back:v1")


def test_layers_that_would_stay_readable(tmp_path: Path) -> None:
    make_image(tmp_path / "plain", "v1")
    reference = parse_reference(f"oci:{tmp_path}/plain:v1")
    with LayoutRepository(reference, write=True) as repository:
        document = json.loads(repository.manifest()[1])
        document["layers"][0]["mediaType"] = m.NYDUS_BLOB
        repository.push_manifest("v1", m.OCI_MANIFEST, json.dumps(document).encode())
    with pytest.raises(UnsupportedError, match="no tar layer"):
        run(encrypt_image, str(reference), f"oci:{tmp_path}/x:v1", _to_reader())
    run(encrypt_image, str(reference), f"oci:{tmp_path}/x:v1", _to_reader(), layers=[-1])


def test_content_that_is_embedded_in_descriptors(tmp_path: Path) -> None:
    """It would be the plaintext, beside the ciphertext."""
    make_image(tmp_path / "plain", "v1")
    reference = parse_reference(f"oci:{tmp_path}/plain:v1")
    with LayoutRepository(reference, write=True) as repository:
        document = json.loads(repository.manifest()[1])
        for layer in document["layers"]:
            layer["data"] = base64.b64encode(b"what is in the layer").decode()
        repository.push_manifest("v1", m.OCI_MANIFEST, json.dumps(document).encode())
    sealed = f"oci:{tmp_path}/sealed:v1"
    run(encrypt_image, str(reference), sealed, _to_reader())
    assert [layer.data for layer in layers_of(sealed)] == ["", ""]
    run(decrypt_image, sealed, f"oci:{tmp_path}/back:v1", KEYS)


# ---- what somebody in between may do -----------------------------------------------------------


def rewrite(
    reference: str, target: str, change: Callable[[dict[str, Any], bytes, PrivateOptions], bytes]
) -> None:
    """Copy an encrypted image with its first layer's descriptor and bytes changed."""
    with (
        open_repository(parse_reference(reference)) as one,
        open_repository(parse_reference(target), write=True) as other,
    ):
        manifest = m.parse_image_manifest(one.manifest()[1])
        document = json.loads(manifest.raw)
        layer = manifest.layers[0]
        private = image_encryption.read_options(layer, KEYS)[1]
        with one.open_blob(layer) as stream:
            data = change(document["layers"][0], stream.read(), private)
        new = m.describe(layer.media_type, data)
        document["layers"][0].update(digest=new.digest, size=new.size)
        other.push_blob(new, io.BytesIO(data))
        for blob in (manifest.config, *manifest.layers[1:]):
            with one.open_blob(blob) as stream:
                other.push_blob(blob, stream)
        other.push_manifest("v1", m.OCI_MANIFEST, json.dumps(document).encode())


def _public(layer: dict[str, Any], **change: Any) -> None:
    text = layer["annotations"][recipients.PUBLIC_OPTIONS]
    document = {**json.loads(base64.b64decode(text)), **change}
    encoded = base64.b64encode(json.dumps(document).encode()).decode()
    layer["annotations"][recipients.PUBLIC_OPTIONS] = encoded


def _wrapped(layer: dict[str, Any], text: bytes) -> None:
    from lamina.trust.crypto import jwe

    packet = base64.b64encode(jwe.encrypt(text, [READER.public()])).decode()
    layer["annotations"][recipients.JWE_KEYS] = packet


def wrong_private_digest(layer: dict[str, Any], data: bytes, private: PrivateOptions) -> bytes:
    document = json.loads(private.encode())
    _wrapped(layer, json.dumps({**document, "digest": "sha256:" + "0" * 64}).encode())
    return data


def empty_private_digest(layer: dict[str, Any], data: bytes, private: PrivateOptions) -> bytes:
    _wrapped(layer, json.dumps({**json.loads(private.encode()), "digest": ""}).encode())
    return data


def substituted_content(layer: dict[str, Any], data: bytes, private: PrivateOptions) -> bytes:
    """Another layer, encrypted to the same public key by somebody who has only that."""
    import gzip

    from tests.unit.registry.images import tar_layer

    evil = gzip.compress(tar_layer({"bin/sh": b"evil"}), mtime=0)
    options = PrivateOptions.new("sha256:" + hashlib.sha256(evil).hexdigest())
    encryptor = ctr_hmac.Encryptor(options.key, options.nonce)
    sealed = encryptor.update(evil)
    _wrapped(layer, options.encode())
    _public(layer, hmac=base64.b64encode(encryptor.hmac()).decode())
    return sealed


def public_nonce(layer: dict[str, Any], data: bytes, private: PrivateOptions) -> bytes:
    _public(layer, cipheroptions={"nonce": base64.b64encode(bytes(16)).decode()})
    return data


def wrong_hmac(layer: dict[str, Any], data: bytes, private: PrivateOptions) -> bytes:
    _public(layer, hmac=base64.b64encode(bytes(32)).decode())
    return data


def flipped_byte(layer: dict[str, Any], data: bytes, private: PrivateOptions) -> bytes:
    return data[:100] + bytes((data[100] ^ 1,)) + data[101:]


def truncated(layer: dict[str, Any], data: bytes, private: PrivateOptions) -> bytes:
    return data[:-1]


def extended(layer: dict[str, Any], data: bytes, private: PrivateOptions) -> bytes:
    return data + b"\0"


def emptied(layer: dict[str, Any], data: bytes, private: PrivateOptions) -> bytes:
    return b""


MANIPULATIONS = [
    wrong_private_digest, empty_private_digest, substituted_content, public_nonce, wrong_hmac,
    flipped_byte, truncated, extended, emptied,
]  # fmt: skip


@pytest.mark.parametrize("manipulation", MANIPULATIONS)
def test_manipulations_are_refused(
    sealed: str, tmp_path: Path, manipulation: Callable[..., bytes]
) -> None:
    changed = f"oci:{tmp_path}/changed:v1"
    rewrite(sealed, changed, manipulation)
    with pytest.raises((IntegrityError, FormatError)):
        run(decrypt_image, changed, f"oci:{tmp_path}/back:v1", KEYS)
    with pytest.raises(Error):
        layers_of(f"oci:{tmp_path}/back:v1")


def test_an_unchanged_copy_is_taken(sealed: str, tmp_path: Path) -> None:
    """So that the manipulations above fail for what they change and not for how."""
    changed = f"oci:{tmp_path}/changed:v1"
    rewrite(sealed, changed, lambda layer, data, private: data)
    run(decrypt_image, changed, f"oci:{tmp_path}/back:v1", KEYS)


def test_annotations_of_all_kinds_of_hostility(sealed: str) -> None:
    layer = layers_of(sealed)[0]
    good = dict(layer.annotations)
    packet = good[recipients.JWE_KEYS]
    foreign = base64.b64encode(b"garbage").decode()
    ok = {**good, recipients.JWE_KEYS: f"{foreign},{packet}"}
    assert recipients.unwrap(ok, KEYS, "x").key
    bad: list[dict[str, str]] = [
        {**good, recipients.JWE_KEYS: ""},
        {**good, recipients.JWE_KEYS: packet[:-8] + "!!!!!!!!"},
        {**good, recipients.JWE_KEYS: ",".join([packet] * 300)},
        {**good, recipients.JWE_KEYS: "A" * (2 << 20)},
        {recipients.PUBLIC_OPTIONS: good[recipients.PUBLIC_OPTIONS]},
        {recipients.KEYS_PREFIX + "pgp": packet},
        {recipients.PROVIDER_PREFIX + "absent": packet},
        {recipients.PKCS7_KEYS: packet},
    ]
    for changed in bad:
        with pytest.raises(Error):
            recipients.unwrap(changed, KEYS, "x")


# ---- the arguments -----------------------------------------------------------------------------


def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, private = tmp_path / "k.pub", tmp_path / "k.pem"
    public.write_bytes(READER.public().pem())
    private.touch(0o600)
    private.write_bytes(pem(READER.key, passphrase=b"tea"))
    found = recipients.parse_recipients([f"jwe:{public}"])
    assert [key.kind for key in found.public_keys] == ["P-256"]
    keys = recipients.parse_decryption_keys([f"{private}:pass=tea"])
    assert [key.kind for key in keys.private_keys] == ["P-256"]
    assert keys and not DecryptionKeys()
    for text in ("jwe", "jwe:", "pgp:me", str(public), "provider:absent:x"):
        with pytest.raises(UsageError):
            recipients.parse_recipients([text])
    with pytest.raises(UsageError):
        recipients.parse_decryption_keys(["provider:absent"])
    config = tmp_path / "providers.json"
    provider = {"cmd": {"path": sys.executable, "args": ["-c", "pass"]}}
    config.write_text(json.dumps({"key-providers": {"mine": provider}}))
    monkeypatch.setenv("OCICRYPT_KEYPROVIDER_CONFIG", str(config))
    assert recipients.parse_recipients(["provider:mine:a:b"]).providers[0][2] == "a:b"
    keys = recipients.parse_decryption_keys(["provider:mine"])
    assert keys.parameters == {"mine": "Enabled"} and list(keys.providers) == ["mine"]

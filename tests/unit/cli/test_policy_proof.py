"""With a policy, what is read is what was proven, whatever the place answers next."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.unit.registry.images import make_image, noise

from lamina.cli import key_options, main
from lamina.errors import TrustError
from lamina.image.errors import NoIndexError
from lamina.oci.reference import parse_reference
from lamina.opening.open_image import Opening
from lamina.opening.version import Version
from lamina.registry.open_repository import open_repository
from lamina.trust.crypto.cosign_key import generate
from lamina.trust.signatures.image_signature import sign_image

IDENTITY = "registry.example/app:v1"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Options, with the policy that wants the image in ``image`` to be signed."""
    make_image(tmp_path / "image", "v1")
    key = generate()
    with open_repository(parse_reference(f"oci:{tmp_path}/image:v1"), write=True) as repository:
        sign_image(repository, key, identity=IDENTITY)
    demand = {
        "type": "sigstoreSigned",
        "keyData": base64.b64encode(key.public().pem()).decode(),
        "signedIdentity": {"type": "exactReference", "dockerReference": IDENTITY},
    }
    policy = {"default": [{"type": "reject"}], "transports": {"oci": {"": [demand]}}}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    return ["--store", f"{tmp_path}/store", "--policy", f"{tmp_path}/policy.json"]


def put_other(folder: Path) -> None:
    """Let the tag name an image that nobody signed."""
    other = folder / "other"
    make_image(other, "v1", seed=7)
    shutil.copytree(other / "blobs", folder / "image/blobs", dirs_exist_ok=True)
    shutil.copy(other / "index.json", folder / "image/index.json")


def test_the_tag_moves_after_the_proof(
    tmp_path: Path,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    real: Callable[..., Any] = Opening.open

    def and_then(opening: Opening, version: Version) -> Any:
        try:
            return real(opening, version)
        except NoIndexError:
            put_other(tmp_path)
            raise

    monkeypatch.setattr(Opening, "open", and_then)
    assert main(["cat", *words, f"oci:{tmp_path}/image:v1", "/a"]) == 0
    assert capsysbinary.readouterr().out == noise(5000, 1)


@pytest.mark.parametrize("more", [[], ["--raw"], ["--json"]])
def test_inspect_shows_what_is_proven_only(
    tmp_path: Path, words: list[str], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["inspect", *more, *words, f"oci:{tmp_path}/image:v1"]
    assert main(command) == 0
    put_other(tmp_path)
    capsys.readouterr()
    assert main(command) == TrustError.exit_code
    assert "layers" not in capsys.readouterr().out


@pytest.mark.parametrize("command", [["inspect", "A"], ["ls", "A"], ["check", "A", "A"]])
def test_a_passphrase_that_can_be_read_once_is_read_once(
    tmp_path: Path, words: list[str], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_options, "protect_process", lambda: None)
    key = rsa.generate_private_key(65537, 2048)
    encryption = serialization.BestAvailableEncryption(b"open sesame")
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, encryption)
    (tmp_path / "key.pem").write_bytes(pem)
    (tmp_path / "key.pem").chmod(0o600)
    reader, writer = os.pipe()
    os.write(writer, b"open sesame\n")
    os.close(writer)
    try:
        option = f"--decryption-key={tmp_path}/key.pem:fd={reader}"
        line = [f"oci:{tmp_path}/image:v1" if word == "A" else word for word in command]
        assert main([*line, *words, option]) == 0
    finally:
        os.close(reader)


def test_inspect_tells_of_one_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, image = ["--store", f"{tmp_path}/store"], f"oci:{tmp_path}/native:v1"
    for seed in (1, 7):
        make_image(tmp_path / "image", "v1", seed=seed)
        assert main(["convert", f"oci:{tmp_path}/image:v1", image]) == 0
        if seed == 1:
            assert main(["pull", "--resident", *store, image]) == 0
    capsys.readouterr()
    assert main(["inspect", "--json", *store, image]) == 0
    facts = json.loads(capsys.readouterr().out)
    blobs = [f"sha256:{blob['id']}" for blob in facts["blobs"]]
    assert blobs == [layer["digest"] for layer in facts["layers"][:-1]]

"""Encrypted images between Lamina and skopeo, both ways; and what skopeo takes but we do not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina.cli.dispatch import run_command
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from tests.support import tools
from tests.unit.registry.images import make_image
from tests.unit.trust.encryption import test_layers as layers
from tests.unit.trust.keys_in_code import pem

pytestmark = pytest.mark.tools
SCHEMES = ["jwe-rsa", "jwe-ec", "pkcs7"]


@pytest.fixture(autouse=True)
def _needs_tools() -> None:
    tools.require_tool("skopeo", "openssl")


@pytest.fixture
def lamina(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line, in this process, which must stay dumpable for the other tests."""
    monkeypatch.setattr("lamina.linux.memory.forbid_core_dumps", lambda: None)
    return lambda *words: run_command([*words])


def shell(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
    return done


def make_keys(folder: Path, scheme: str) -> tuple[list[str], list[str]]:
    """Values of --encryption-key and --decryption-key."""
    key, public = f"{folder}/{scheme}.pem", f"{folder}/{scheme}.pub"
    if scheme == "pkcs7":
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3"]
        shell(*new, "-subj", "/CN=p7", "-keyout", key, "-out", public)
        return [f"pkcs7:{public}"], [key, public]
    kind = ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
    if scheme == "jwe-ec":
        kind = ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    shell("openssl", "genpkey", "-algorithm", *kind, "-out", key)
    shell("openssl", "pkey", "-in", key, "-pubout", "-out", public)
    return [f"jwe:{public}"], [key]


def options(name: str, values: list[str]) -> list[str]:
    return [word for value in values for word in (f"--{name}", value)]


def digests(reference: str) -> list[str]:
    with open_repository(parse_reference(reference)) as repository:
        return [layer.digest for layer in m.parse_image_manifest(repository.manifest()[1]).layers]


@pytest.fixture
def plain(tmp_path: Path) -> str:
    make_image(tmp_path / "plain", "v1")
    return f"oci:{tmp_path}/plain:v1"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_skopeo_decrypts_what_we_encrypt(
    lamina: Callable[..., int], plain: str, tmp_path: Path, scheme: str
) -> None:
    public, private = make_keys(tmp_path, scheme)
    sealed, back = f"oci:{tmp_path}/sealed:v1", f"oci:{tmp_path}/back:v1"
    assert lamina("encrypt", "-q", *options("encryption-key", public), plain, sealed) == 0
    assert not set(digests(sealed)) & set(digests(plain))
    shell("skopeo", "copy", "-q", *options("decryption-key", private), sealed, back)
    assert digests(back) == digests(plain)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_we_decrypt_what_skopeo_encrypts(
    lamina: Callable[..., int], plain: str, tmp_path: Path, scheme: str
) -> None:
    public, private = make_keys(tmp_path, scheme)
    sealed, back = f"oci:{tmp_path}/sealed:v1", f"oci:{tmp_path}/back:v1"
    shell("skopeo", "copy", "-q", *options("encryption-key", public), plain, sealed)
    assert lamina("decrypt", "-q", *options("decryption-key", private), sealed, back) == 0
    assert digests(back) == digests(plain)


@pytest.mark.parametrize("writer", ["skopeo", "lamina"])
def test_all_schemes_in_one_image_any_key_opens_it(
    lamina: Callable[..., int], plain: str, tmp_path: Path, writer: str
) -> None:
    keys = [make_keys(tmp_path, scheme) for scheme in SCHEMES]
    sealed = f"oci:{tmp_path}/sealed:v1"
    everybody = options("encryption-key", [text for public, _ in keys for text in public])
    if writer == "skopeo":
        shell("skopeo", "copy", "-q", *everybody, plain, sealed)
    else:
        assert lamina("encrypt", "-q", *everybody, plain, sealed) == 0
    for number, (_, private) in enumerate(keys):
        words = options("decryption-key", private)
        back, again = f"oci:{tmp_path}/back{number}:v1", f"oci:{tmp_path}/again{number}:v1"
        assert lamina("decrypt", "-q", *words, sealed, back) == 0
        shell("skopeo", "copy", "-q", *words, sealed, again)
        assert digests(back) == digests(again) == digests(plain)


def test_a_raw_tar_that_skopeo_compresses_on_the_way(
    lamina: Callable[..., int], tmp_path: Path
) -> None:
    """Its private digest is then that of the source, not of what was encrypted."""
    from lamina.cli.self_tests import write_layout
    from tests.unit.registry.images import tar_layer

    (tmp_path / "raw").mkdir()
    write_layout(tmp_path / "raw", "v1", tar_layer({"a": b"x" * 5000}), {})
    shell(
        "skopeo", "copy", "-q", f"oci:{tmp_path}/raw:v1", f"dir:{tmp_path}/d", "--dest-decompress"
    )
    public, private = make_keys(tmp_path, "jwe-ec")
    sealed = f"oci:{tmp_path}/sealed:v1"
    shell("skopeo", "copy", "-q", *options("encryption-key", public), f"dir:{tmp_path}/d", sealed)
    words = options("decryption-key", private)
    assert lamina("decrypt", "-q", *words, sealed, f"oci:{tmp_path}/back:v1") == 0


def test_a_recipient_that_we_add_can_use_skopeo(
    lamina: Callable[..., int], plain: str, tmp_path: Path
) -> None:
    first, second = (make_keys(tmp_path, scheme) for scheme in ("jwe-rsa", "jwe-ec"))
    sealed, two = f"oci:{tmp_path}/sealed:v1", f"oci:{tmp_path}/two:v1"
    shell("skopeo", "copy", "-q", *options("encryption-key", first[0]), plain, sealed)
    more = [*options("encryption-key", second[0]), *options("decryption-key", first[1])]
    assert lamina("encrypt", "-q", *more, sealed, two) == 0
    for number, keys in enumerate((first, second)):
        back = f"oci:{tmp_path}/back{number}:v1"
        shell("skopeo", "copy", "-q", *options("decryption-key", keys[1]), two, back)
        assert digests(back) == digests(plain)


@pytest.mark.parametrize("manipulation", layers.MANIPULATIONS)
def test_manipulations(
    lamina: Callable[..., int],
    plain: str,
    tmp_path: Path,
    manipulation: Callable[..., bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """We refuse all of them; skopeo takes four (and an empty layer is its own matter)."""
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.touch(0o600)
    private.write_bytes(pem(layers.READER.key))
    public.write_bytes(layers.READER.public().pem())
    sealed, changed = f"oci:{tmp_path}/sealed:v1", f"oci:{tmp_path}/changed:v1"
    assert lamina("encrypt", "-q", "--encryption-key", f"jwe:{public}", plain, sealed) == 0
    layers.rewrite(sealed, changed, manipulation)
    words = ("--decryption-key", str(private), changed)
    assert lamina("decrypt", "-q", *words, f"oci:{tmp_path}/ours:v1") in (3, 4)
    assert "lamina: " in capsys.readouterr().err
    theirs = shell("skopeo", "copy", "-q", *words, f"oci:{tmp_path}/theirs:v1", check=False)
    accepted = ("wrong_private_digest", "empty_private_digest", "substituted_content")
    if manipulation.__name__ in (*accepted, "public_nonce"):
        assert theirs.returncode == 0

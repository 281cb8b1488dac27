"""Images that skopeo encrypted are converted, sealed and opened with a key, and without it not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli.self_tests import tiny_layout
from tests.support import tools
from tests.support.registry_server import RegistryServer
from tests.support.shell import Shell

pytestmark = pytest.mark.tools


class Encrypted:
    """An image in a registry, encrypted by skopeo; the same in clear; and the key."""

    def __init__(self, shell: Shell, registry: RegistryServer) -> None:
        self.shell = shell
        self.registry = registry
        self.files = tiny_layout(shell.folder / "source")
        self.plain = "oci:source:tiny"
        self.name = registry.reference(f"encrypted/{shell.folder.name}:1")
        self.key = ("--decryption-key", "key.pem")
        tool("openssl", "genpkey", "-algorithm", "RSA", "-out", "key.pem", folder=shell.folder)
        words = ("openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "key.pub")
        tool(*words, folder=shell.folder)
        to = ("--dest-tls-verify=false", "--encryption-key", "jwe:key.pub")
        tool("skopeo", "copy", "-q", *to, self.plain, self.name, folder=shell.folder)


def tool(*words: str, folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def blobs(shell: Shell, *words: str) -> list[str]:
    """The digests of the blobs that a conversion makes."""
    report = json.loads(shell("convert", "-q", "--json", *words).stdout)
    return [layer["blob_digest"] for image in report["images"] for layer in image["layers"]]


@pytest.fixture
def encrypted(shell: Shell, registry: RegistryServer) -> Iterator[Encrypted]:
    tools.require_tool("skopeo", "openssl")
    yield Encrypted(shell, registry)


def test_it_is_converted_as_its_plaintext_is(encrypted: Encrypted) -> None:
    shell = encrypted.shell
    with_key = blobs(shell, *encrypted.key, encrypted.name, "oci:native:1")
    assert with_key == blobs(shell, encrypted.plain, "oci:native:2")
    hello = shell("cat", "oci:native:1", "/etc/hello").stdout
    assert hello.encode() == encrypted.files["etc/hello"]
    refused = shell("convert", encrypted.name, "oci:native:3", code=12)
    assert "is encrypted" in refused.stderr
    assert "hint: give --decryption-key FILE" in refused.stderr


def test_another_key_does_not_open_it(encrypted: Encrypted) -> None:
    shell = encrypted.shell
    tool("openssl", "genpkey", "-algorithm", "RSA", "-out", "other.pem", folder=shell.folder)
    words = ("--decryption-key", "other.pem", encrypted.name, "oci:native:1")
    assert "no key" in shell("convert", *words, code=12).stderr


def test_sealing_it_leaves_no_plaintext_anywhere(encrypted: Encrypted) -> None:
    shell = encrypted.shell
    (shell.folder / "tmp").mkdir()
    shell.environment["TMPDIR"] = str(shell.folder / "tmp")
    sealed = encrypted.name.removesuffix(":1") + ":sealed"
    words = ("convert", "-q", "--seal", "--encryption-key", "jwe:key.pub", *encrypted.key)
    # What is written is seen as it is written, also into files that have no name any more.
    log = shell.folder / "written"
    trace = ("strace", "-f", "-qq", "-xx", "-s", "99999999", "-e", "trace=write,pwrite64,writev")
    tools.require_tool("strace")
    done = subprocess.run(
        [*trace, "-o", log, *shell.words(*words, encrypted.name, sealed)],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    marker = encrypted.files["big"][5000:5032]
    assert b"".join(b"\\x%02x" % byte for byte in marker) not in log.read_bytes()
    for folder in (encrypted.registry.root, shell.folder / "tmp", shell.folder / "store"):
        for path in folder.rglob("*"):
            if path.is_file():
                assert marker not in path.read_bytes(), path
    assert "cannot be seen without a key" in shell("ls", sealed, code=12).stderr
    hello = shell("cat", *encrypted.key, sealed, "/etc/hello").stdout
    assert hello.encode() == encrypted.files["etc/hello"]


def test_it_is_indexed_on_the_node_and_needs_its_key_every_time(encrypted: Encrypted) -> None:
    shell = encrypted.shell
    refused = shell("mount", "--device", "fuse", *encrypted.key, encrypted.name, "mnt", code=9)
    assert "--index always" in refused.stderr
    words = ("--index", "always", *encrypted.key, encrypted.name)
    shell("mount", "--device", "fuse", *words, "mnt")
    for name, data in encrypted.files.items():
        assert (shell.folder / "mnt" / name).read_bytes() == data
    shell("umount", "mnt")
    for index in ("always", "auto"):
        refused = shell("ls", "--index", index, encrypted.name, code=12)
        assert "cannot be read without a key" in refused.stderr
    shell("ls", *encrypted.key, encrypted.name)


def test_what_was_evicted_is_decrypted_from_the_registry(encrypted: Encrypted) -> None:
    shell = encrypted.shell
    shell("ls", "--index", "always", *encrypted.key, encrypted.name)
    for path in (shell.folder / "store" / "blobs").iterdir():
        path.unlink()
    done = shell("coverage", "--json", *encrypted.key, encrypted.name)
    assert json.loads(done.stdout)["ready_bytes"] == 0
    hello = shell("cat", *encrypted.key, encrypted.name, "/etc/hello").stdout
    assert hello.encode() == encrypted.files["etc/hello"]


def test_what_was_evicted_is_decrypted_from_a_folder(encrypted: Encrypted) -> None:
    shell = encrypted.shell
    words = ("--src-tls-verify=false", encrypted.name, "oci:beside:1")
    tool("skopeo", "copy", "-q", *words, folder=shell.folder)
    shell("ls", "--index", "always", *encrypted.key, encrypted.name)
    for path in (shell.folder / "store" / "blobs").iterdir():
        path.unlink()
    done = shell("cat", "--blob-dir", "beside", *encrypted.key, encrypted.name, "/etc/hello")
    assert done.stdout.encode() == encrypted.files["etc/hello"]
    assert "damaged" not in done.stderr


@pytest.mark.kernel
@pytest.mark.usefixtures("as_root")
def test_a_container_starts_from_it(shell: Shell, registry: RegistryServer) -> None:
    from tests.support.images import image_layout, is_built

    tools.require_tool("runc", "skopeo", "openssl")
    if not is_built("minbase"):
        pytest.skip("the image minbase is not built")
    tool("openssl", "genpkey", "-algorithm", "RSA", "-out", "key.pem", folder=shell.folder)
    words = ("openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "key.pub")
    tool(*words, folder=shell.folder)
    to = ("--encryption-key", "jwe:key.pub", f"oci:{image_layout('minbase')}:latest")
    tool("skopeo", "copy", "-q", *to, "oci:enc:1", folder=shell.folder)
    words = (
        "--index",
        "always",
        "--decryption-key",
        "key.pem",
        "oci:enc:1",
        "cat",
        "/etc/os-release",
    )
    assert "Debian" in shell("run", "--rm", *words).stdout


def test_an_index_beside_it_would_tell_too_much(encrypted: Encrypted) -> None:
    refused = encrypted.shell("index", encrypted.name, code=2)
    assert "would show names" in refused.stderr
    assert "convert --seal --decryption-key" in refused.stderr

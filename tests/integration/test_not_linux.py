"""The library, fsspec and the verbs that mount nothing work without any call of Linux's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.cli.self_tests import tiny_layout
from tests.support.registry_server import RegistryServer

ROOT = Path(__file__).parents[2]


class Elsewhere:
    """A folder with the image ``oci:source:tiny``, and a Lamina that is not on Linux."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = tiny_layout(folder / "source")
        self.name, self.data = max(self.files.items(), key=lambda item: len(item[1]))

    def run(self, *words: str, code: int = 0) -> bytes:
        """Run a verb, or ``-c PROGRAM``; return what it writes to standard output."""
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.support.not_linux", *words],
            cwd=self.folder,
            capture_output=True,
            env={**environment, "COSIGN_PASSWORD": "pass"},
        )
        assert done.returncode == code, done.stderr.decode()
        return done.stdout + (done.stderr if code else b"")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path)


def test_linux_is_hidden(elsewhere: Elsewhere) -> None:
    """What the other tests stand on."""
    program = (
        "import os\n"
        "for words in ('import lamina.linux.mount', 'import lamina.serve.mount',\n"
        "              'os.memfd_create', 'os.O_TMPFILE', 'open(\"/proc/self/mountinfo\")'):\n"
        "    try: exec(words)\n"
        "    except (ImportError, AttributeError, FileNotFoundError) as error: print(error)\n"
        "    else: raise SystemExit(words)\n"
    )
    assert len(elsewhere.run("-c", program).splitlines()) == 5


def test_verbs_over_a_folder(elsewhere: Elsewhere) -> None:
    elsewhere.run("convert", "oci:source:tiny", "oci:native:tiny")
    assert elsewhere.run("cat", "oci:native:tiny", f"/{elsewhere.name}") == elsewhere.data
    listed = elsewhere.run("ls", "--recursive", "--json", "oci:native:tiny", "/")
    assert f"/{elsewhere.name}" in {json.loads(line)["path"] for line in listed.splitlines()}
    told = json.loads(elsewhere.run("stat", "--json", "oci:native:tiny", f"/{elsewhere.name}"))
    assert told["size"] == len(elsewhere.data)
    assert b"sha256:" in elsewhere.run("inspect", "--json", "oci:native:tiny")
    elsewhere.run("check", "--data", "oci:native:tiny")
    elsewhere.run("copy", "oci:native:tiny", "oci-archive:packed.tar")
    assert elsewhere.run("ls", "oci-archive:packed.tar", "/")
    # An ordinary image is read and indexed here.
    found = elsewhere.run("cat", "--index", "always", "oci:source:tiny", f"/{elsewhere.name}")
    assert found == elsewhere.data
    assert elsewhere.run("images")
    elsewhere.run("gc")
    assert b"mounts and containers need it" in elsewhere.run("self-test")


def test_verbs_over_a_registry(elsewhere: Elsewhere, registry: RegistryServer) -> None:
    image = f"docker://{registry.host}/elsewhere:tiny"
    elsewhere.run("convert", "--plain-http", "oci:source:tiny", image)
    elsewhere.run("key", "generate", "owner")
    elsewhere.run("sign", "--plain-http", "--key", "owner.key", image)
    elsewhere.run("verify", "--plain-http", "--key", "owner.pub", image)
    assert elsewhere.run("cat", "--plain-http", image, f"/{elsewhere.name}") == elsewhere.data
    elsewhere.run("pull", "--plain-http", image)
    elsewhere.run("copy", "--plain-http", image, "oci:copied:tiny")


def test_the_library(elsewhere: Elsewhere) -> None:
    pytest.importorskip("fsspec")
    elsewhere.run("convert", "oci:source:tiny", "oci:native:tiny")
    program = (
        "import fsspec, lamina, sys\n"
        "with lamina.open('oci:native:tiny') as image:\n"
        f"    data = image.read_bytes('/{elsewhere.name}')\n"
        f"with fsspec.open('lamina://oci:native:tiny//{elsewhere.name}') as file:\n"
        "    assert file.read() == data\n"
        "sys.stdout.buffer.write(data)\n"
    )
    assert elsewhere.run("-c", program) == elsewhere.data


def test_what_mounts_says_that_it_is_for_linux(elsewhere: Elsewhere) -> None:
    for words in (("mount", "oci:source:tiny", "/mnt"), ("run", "oci:source:tiny"), ("mounts",)):
        assert b"needs Linux" in elsewhere.run(*words, code=9)
    assert b"needs Linux" in elsewhere.run("service", "status", code=9)

"""Layouts, copies and attachments as crane, cosign, oras and soci really write them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli import main
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from tests.support.tools import require_peer
from tests.unit.registry.images import make_image, make_index

NOTE = "application/vnd.example.note"
COSIGN_PLACE = ("--allow-http-registry", "--allow-insecure-registry")
COSIGN_OFFLINE = ("-y", "--use-signing-config=false", "--tlog-upload=false", *COSIGN_PLACE)


def run(*command: str | Path) -> str:
    """Run a program; what it printed."""
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COSIGN_PASSWORD": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """The registry of crane, which has no referrers API."""
    program = require_peer("crane")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [program, "registry", "serve", "--address", place]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(place)
            yield place
        finally:
            server.send_signal(signal.SIGTERM)


def _wait_for(place: str) -> None:
    name, port = place.split(":")
    for _ in range(600):
        try:
            socket.create_connection((name, int(port)), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"nobody listens on {place}")


@pytest.fixture
def pushed(host: str, tmp_path: Path) -> tuple[str, str]:
    """An image in the registry, and its digest."""
    made = make_image(tmp_path / "source", "v1")
    place = f"{host}/{tmp_path.name}/app:v1"
    assert main(["copy", f"oci:{tmp_path}/source:v1", f"docker://{place}"]) == 0
    return place, made.digest


def digest_of(reference: str) -> str:
    with open_repository(parse_reference(reference)) as repository:
        return repository.resolve().digest


def every_verb(reference: str, tmp_path: Path) -> None:
    """Whatever reads an image reads this one."""
    assert main(["inspect", reference]) == 0
    assert main(["ls", reference]) == 0
    assert main(["cat", reference, "b"]) == 0
    assert main(["copy", reference, f"oci:{tmp_path}/verbs-one:x"]) == 0
    assert main(["copy", "--all", reference, f"oci:{tmp_path}/verbs-all:x"]) == 0
    assert main(["index", f"oci:{tmp_path}/verbs-all:x"]) == 0
    assert main(["ls", f"oci:{tmp_path}/verbs-all:x"]) == 0
    assert main(["convert", reference, f"oci:{tmp_path}/verbs-native:x"]) == 0
    assert main(["check", f"oci:{tmp_path}/verbs-native:x"]) == 0


def test_what_crane_pulls(pushed: tuple[str, str], tmp_path: Path) -> None:
    place, digest = pushed
    folder = tmp_path / "crane"
    run(require_peer("crane"), "pull", "--insecure", "--format=oci", place, folder)
    assert digest_of(f"oci:{folder}") == digest
    every_verb(f"oci:{folder}", tmp_path)


def test_what_oras_copies_with_its_attachments(pushed: tuple[str, str], tmp_path: Path) -> None:
    oras = require_peer("oras")
    place, digest = pushed
    (tmp_path / "note.txt").write_text("hello")
    note = f"{tmp_path}/note.txt:text/plain"
    attach = [oras, "attach", "--plain-http", "--disable-path-validation"]
    run(*attach, "--artifact-type", NOTE, place, note)
    folder = tmp_path / "oras"
    run(oras, "cp", "-r", "--from-plain-http", "--to-oci-layout", place, f"{folder}:v1")
    assert digest_of(f"oci:{folder}") == digest
    every_verb(f"oci:{folder}", tmp_path)
    there = f"docker://{place.replace('/app:', '/other:')}"
    assert main(["copy", "--referrers", f"oci:{folder}:v1", there]) == 0
    found = run(oras, "discover", "--plain-http", "--format=json", there.removeprefix("docker://"))
    listed = json.loads(found)
    entries = listed.get("referrers") or listed["manifests"]
    assert [entry["artifactType"] for entry in entries] == [NOTE]


@pytest.mark.parametrize("form", ["--new-bundle-format=false", "--new-bundle-format=true"])
def test_signatures_of_cosign_come_along(
    form: str, pushed: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cosign = require_peer("cosign")
    place, digest = pushed
    prefix = tmp_path / "key"
    run(cosign, "generate-key-pair", "--output-key-prefix", prefix)
    named = f"{place.rpartition(':')[0]}@{digest}"
    run(cosign, "sign", "--key", f"{prefix}.key", form, *COSIGN_OFFLINE, named)
    proof = ["--key", f"{prefix}.pub", "--any-name"]
    assert main(["verify", *proof, f"docker://{place}"]) == 0
    there = f"{place.replace('/app:', '/other:')}"
    assert main(["copy", f"docker://{place}", f"docker://{there}"]) == 0
    assert "left behind: 1 signature (--referrers" in capfd.readouterr().err
    assert main(["verify", *proof, f"docker://{there}"]) != 0
    assert main(["copy", "--referrers", f"docker://{place}", f"docker://{there}"]) == 0
    assert main(["verify", *proof, f"docker://{there}"]) == 0
    key = ["--key", f"{prefix}.pub", "--insecure-ignore-tlog=true", form, *COSIGN_PLACE]
    run(cosign, "verify", *key, there)
    if form.endswith("false"):
        folder = tmp_path / "saved"
        run(cosign, "save", "--dir", folder, *COSIGN_PLACE, place)
        assert digest_of(f"oci:{folder}") == digest
        assert main(["verify", *proof, f"oci:{folder}"]) == 0
        every_verb(f"oci:{folder}", tmp_path)


def test_what_cosign_copy_leaves_behind(
    pushed: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The image itself lies under the tag that a list of its referrers has."""
    cosign = require_peer("cosign")
    place, digest = pushed
    prefix = tmp_path / "key"
    run(cosign, "generate-key-pair", "--output-key-prefix", prefix)
    named = f"{place.rpartition(':')[0]}@{digest}"
    sign = ["--key", f"{prefix}.key", "--new-bundle-format=false", *COSIGN_OFFLINE]
    run(cosign, "sign", *sign, named)
    there = place.replace("/app:", "/moved:")
    run(cosign, "copy", *COSIGN_PLACE, place, there)
    tags = run(require_peer("crane"), "ls", "--insecure", there.rpartition(":")[0]).split()
    assert digest.replace(":", "-") in tags
    assert main(["ls", f"docker://{there}"]) == 0
    assert capfd.readouterr().err.count("no list of what refers to") == 1
    assert main(["verify", "--key", f"{prefix}.pub", "--any-name", f"docker://{there}"]) == 0
    assert main(["index", f"docker://{there}"]) == 0
    capfd.readouterr()
    assert main(["inspect", "--json", f"docker://{there}"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["indexed_by"]
    assert "no list" not in printed.err


@pytest.mark.parametrize("form", ["oci-dir", "oci-archive"])
def test_what_soci_converts(form: str, tmp_path: Path) -> None:
    soci = require_peer("soci")
    make_index(tmp_path / "source", "multi")
    target = tmp_path / "soci"
    convert = [soci, "convert", "--standalone", "--all-platforms", "--min-layer-size", "0"]
    run(*convert, "--format", form, tmp_path / "source", target)
    reference = f"{'oci' if form == 'oci-dir' else form}:{target}"
    with open_repository(parse_reference(reference)) as repository:
        entries = json.loads(repository.manifest()[1])["manifests"]
    assert len(entries) == 4
    every_verb(reference, tmp_path)


def test_soci_through_a_registry_and_oras(host: str, tmp_path: Path) -> None:
    """Parts of the index become entries without a name, and lose their types on the way."""
    soci, oras = require_peer("soci"), require_peer("oras")
    make_image(tmp_path / "source", "v1")
    convert = [soci, "convert", "--standalone", "--min-layer-size", "0", "--format", "oci-dir"]
    run(*convert, tmp_path / "source", tmp_path / "soci")
    place = f"{host}/{tmp_path.name}/soci:v1"
    assert main(["copy", "--all", f"oci:{tmp_path}/soci", f"docker://{place}"]) == 0
    every_verb(f"docker://{place}", tmp_path)
    folder = tmp_path / "oras"
    run(oras, "cp", "-r", "--from-plain-http", "--to-oci-layout", place, f"{folder}:v1")
    assert digest_of(f"oci:{folder}") == digest_of(f"docker://{place}")

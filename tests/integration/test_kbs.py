"""``lamina kbs`` as people use it: as processes, with lamina and through the provider as a
program; and where keys must not show.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from tests.unit.registry.images import make_image

PASSPHRASE = "a passphrase that shows"
KEY = b"0123456789abcdefghijklmnopqrstuv"
RESOURCE = "team/kek/7"
PROVIDER = "provider:attestation-agent"
LAMINA = [sys.executable, "-m", "lamina"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "LAMINA_KBS_PASSWORD": PASSPHRASE, **more}


def lamina(*words: str, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*LAMINA, *words], input=stdin, capture_output=True, env=environment(), timeout=60
    )
    assert done.returncode == code, done.stderr.decode()
    for text in (PASSPHRASE.encode(), KEY, base64.b64encode(KEY), KEY.hex().encode()):
        assert text not in done.stdout + done.stderr
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A broker with one key."""
    folder = tmp_path / "kbs"
    lamina("kbs", "init", "--dir", str(folder))
    lamina("kbs", "put", "--dir", str(folder), RESOURCE, stdin=KEY)
    return folder


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """URL and process."""
    words = ["kbs", "serve", "--dir", str(folder), "--listen", "127.0.0.1:0", "--json", "-q"]
    with subprocess.Popen(
        [*LAMINA, *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment()
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    assert code == 0


def rule(folder: Path, *words: str) -> None:
    lamina("kbs", "policy", "--dir", str(folder), RESOURCE, *words)


def test_a_new_value_with_and_without_a_rule(folder: Path) -> None:
    words = ("kbs", "put", "--dir", str(folder), "--replace", "--json", RESOURCE)

    def rule_of(*more: str) -> object:
        return json.loads(lamina(*words, *more, stdin=KEY).stdout)["rule"]

    anybody = rule_of("--anybody")
    assert anybody is not None
    assert rule_of() == anybody
    assert rule_of("--nobody") is None


def test_an_image_for_attested_guests(folder: Path, tmp_path: Path) -> None:
    make_image(tmp_path / "plain", "v1")
    plain, sealed = f"oci:{tmp_path}/plain:v1", f"oci:{tmp_path}/sealed:v1"
    rule(folder, "--anybody")
    with serving(folder) as (url, _):
        broker = ("--kbs", url, "--kbs-ca", f"{folder}/ca.crt")
        wrapped_by = ("--encryption-key", f"{PROVIDER}:keyid=kbs:///{RESOURCE}")
        digest = lamina("encrypt", *broker, *wrapped_by, plain, sealed).stdout.decode().strip()
        number = 0

        def opened(code: int = 0, *more: str) -> str:
            nonlocal number
            number += 1
            target = f"oci:{tmp_path}/back{number}:v1"
            words = ("decrypt", *broker, "--decryption-key", PROVIDER, *more, sealed, target)
            done = lamina(*words, code=code)
            if code:
                assert not (tmp_path / f"back{number}").exists()
                return done.stderr.decode()
            with (
                open_repository(parse_reference(plain)) as one,
                open_repository(parse_reference(target)) as other,
            ):
                assert one.manifest()[0].digest == other.manifest()[0].digest
            return ""

        rule(folder, "--image-digest", digest, "--measurement", "m1")
        opened(0, "--kbs-measurement", "m1")
        assert "runs something else" in opened(12, "--kbs-measurement", "m2")
        rule(folder, "--image-digest", "sha256:" + "ab" * 32)
        assert "does not allow this image" in opened(12)
        rule(folder, "--min-release", "7")
        assert "too old" in opened(12)
        rule(folder, "--nobody")
        assert "policy does not allow" in opened(12)
        lamina("kbs", "remove", "--dir", str(folder), RESOURCE)
        assert "has no resource" in opened(12)
        broker = ("--kbs", url, "--kbs-ca", f"{foreign_authority(tmp_path)}")
        assert "is not the key broker that is trusted" in opened(12)
    audit = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    reasons = [line["reason"] for line in audit if line["result"] == "refused"]
    assert reasons == [
        "MeasurementNotAllowed",
        "ImageNotAllowed",
        "ReleaseTooOld",
        "PolicyDeny",
        "ResourceNotFound",
    ]


def foreign_authority(folder: Path) -> Path:
    lamina("kbs", "init", "--dir", str(folder / "foreign"))
    return folder / "foreign" / "ca.crt"


def test_the_provider_as_a_program(folder: Path, tmp_path: Path) -> None:
    """Newer skopeos than that of Debian 12 call it as this does."""
    make_image(tmp_path / "plain", "v1")
    plain, sealed, back = (f"oci:{tmp_path}/{name}:v1" for name in ("plain", "sealed", "back"))
    rule(folder, "--anybody")
    with serving(folder) as (url, _):
        words = [*LAMINA[1:], "kbs", "key-provider", "--kbs", url, "--kbs-ca", f"{folder}/ca.crt"]
        entry = {"cmd": {"path": LAMINA[0], "args": words}}
        config = tmp_path / "providers.json"
        config.write_text(json.dumps({"key-providers": {"attestation-agent": entry}}))
        more = environment(OCICRYPT_KEYPROVIDER_CONFIG=str(config))
        wrapped_by = ["--encryption-key", f"{PROVIDER}:keyid=kbs:///{RESOURCE}"]
        subprocess.run([*LAMINA, "encrypt", "-q", *wrapped_by, plain, sealed], env=more, check=True)
        subprocess.run([*LAMINA, "decrypt", "-q", sealed, back], env=more, check=True)
        # What the program wrapped opens in process, and the other way round.
        broker = ("--kbs", url, "--kbs-ca", f"{folder}/ca.crt", "--decryption-key", PROVIDER)
        lamina("decrypt", *broker, sealed, f"oci:{tmp_path}/again:v1")
        rule(folder, "--nobody")
        refused = subprocess.run([*LAMINA, "decrypt", "-q", sealed, back], env=more)
        assert refused.returncode == 12


def test_actions(folder: Path, tmp_path: Path) -> None:
    where = ("--dir", str(folder))
    assert b"nobody" in lamina("kbs", "list", *where).stdout
    lamina("kbs", "put", *where, RESOURCE, stdin=KEY, code=2)
    lamina("kbs", "put", *where, RESOURCE, "--replace", "--random", "--anybody")
    rule(folder, "--tee", "sample", "--min-release", "3")
    listed = json.loads(lamina("kbs", "list", *where, "--json").stdout)
    expected = {"tees": ["sample"], "measurements": [], "images": [], "minimum_release": 3}
    assert listed == {"resource": f"kbs:///{RESOURCE}", "rule": expected}
    # A new value keeps the rule.
    lamina("kbs", "put", *where, RESOURCE, "--replace", stdin=KEY)
    assert json.loads(lamina("kbs", "policy", *where, RESOURCE, "--json").stdout) == listed
    lamina("kbs", "policy", *where, "a/b/absent", "--anybody", code=7)
    lamina("kbs", "policy", *where, RESOURCE, "--anybody", "--nobody", code=2)
    lamina("kbs", "policy", *where, RESOURCE, "--image-digest", "x", code=2)
    lamina("kbs", "put", *where, code=2)
    lamina("kbs", "put", *where, "a/../b", code=3)
    lamina("kbs", "put", *where, "a/b/empty", code=2)
    lamina("kbs", "remove", *where, "a/b/absent", code=7)
    lamina("kbs", "init", *where, code=2)
    half = tmp_path / "half"
    half.mkdir()
    (half / "tls.key").touch()
    lamina("kbs", "init", "--dir", str(half), code=2)
    assert os.listdir(half) == ["tls.key"], "no store without certificates"
    lamina("kbs", "serve", *where, "--listen", "nowhere", code=2)
    lamina("kbs", "key-provider", code=2)
    file = tmp_path / "passphrase"
    file.write_text("wrong\n")
    lamina("kbs", "list", *where, "--passphrase-file", str(file), code=12)
    file.write_text(f"{PASSPHRASE}\n")
    lamina("kbs", "list", *where, "--passphrase-file", str(file))
    lamina("kbs", "list", *where, "--passphrase-fd", "0", stdin=b"wrong\n", code=12)
    both = PASSPHRASE.encode() + b"\n" + KEY
    lamina("kbs", "put", *where, "a/b/after", "--passphrase-fd", "0", stdin=both)
    lamina("kbs", "list", *where, "--passphrase-fd", "-1", code=2)
    lamina("kbs", "list", *where, "--passphrase-fd", "99", code=2)
    more = ("--passphrase-fd", "0", "--passphrase-file", str(file))
    lamina("kbs", "list", *where, *more, code=2)


def test_files_of_the_broker_are_its_own(folder: Path) -> None:
    with serving(folder):
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    for name in ("keys", "keys.lock", "tls.key", "audit.jsonl"):
        assert modes[name] == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_serving_broker_is_not_dumped(folder: Path) -> None:
    """No core file, no look into its memory by others, no passphrase for children."""
    with serving(folder) as (_, pid):
        limits = Path(f"/proc/{pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core"))
        assert core.split()[4:6] == ["0", "0"]
        # What is not dumpable belongs to root, whoever runs it; ours is root, so ask the kernel.
        probe = f"import os; os.setuid(65534); open('/proc/{pid}/environ','rb').read()"
        if os.geteuid() == 0:
            done = subprocess.run([sys.executable, "-c", probe], capture_output=True)
            assert b"PermissionError" in done.stderr
            assert PASSPHRASE.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        status = Path(f"/proc/{pid}/status").read_text()
        locked = next(line for line in status.splitlines() if line.startswith("VmLck"))
        assert int(locked.split()[1]) > 0


def test_the_runtime_of_containers_inherits_no_passphrase(tmp_path: Path) -> None:
    """A runtime that writes down what it sees of its environment, its parent's and its limits."""
    from lamina.cli.self_tests import write_layout
    from tests.unit.registry.images import tar_layer

    if os.geteuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "image").mkdir()
    write_layout(tmp_path / "image", "v1", tar_layer({"a": b"x"}), {})
    native = f"oci:{tmp_path}/native:v1"
    lamina("convert", "-q", f"oci:{tmp_path}/image:v1", native)
    runtime, seen = tmp_path / "runtime", tmp_path / "seen"
    runtime.write_text(f"#!/bin/sh\ncat /proc/self/environ >> {seen}\nexit 3\n")
    runtime.chmod(0o755)
    command = [*LAMINA, "run", "--rm", "--runtime", str(runtime), native, "/a"]
    more = environment(COSIGN_PASSWORD="another passphrase that shows")
    done = subprocess.run(command, env=more, capture_output=True, timeout=60)
    assert b"PATH=" in seen.read_bytes(), done.stderr
    for text in (b"passphrase that shows", b"PASSWORD"):
        assert text not in seen.read_bytes()
        assert text not in done.stdout + done.stderr


def test_a_sealed_image_by_the_broker(folder: Path, tmp_path: Path) -> None:
    """Opened for one digest only; and a rule for a release wants a signature that states it."""
    make_image(tmp_path / "plain", "v1")
    sealed = f"oci:{tmp_path}/sealed:v1"
    rule(folder, "--anybody")
    with serving(folder) as (url, _):
        broker = ("--kbs", url, "--kbs-ca", f"{folder}/ca.crt")
        key = ("--encryption-key", f"{PROVIDER}:keyid=kbs:///{RESOURCE}")
        lamina("convert", "-q", "--seal", *broker, *key, f"oci:{tmp_path}/plain:v1", sealed)
        with open_repository(parse_reference(sealed)) as repository:
            digest = repository.manifest()[0].digest

        def listed(code: int) -> bytes:
            store = ("--store", str(tmp_path / f"store{code}"))
            done = lamina("ls", *broker, *store, sealed, "/", code=code)
            return done.stderr if code else done.stdout

        rule(folder, "--image-digest", digest)
        assert listed(0).strip()
        rule(folder, "--image-digest", "sha256:" + "ab" * 32)
        assert b"does not allow this image" in listed(12)
        rule(folder, "--image-digest", digest, "--min-release", "1")
        assert b"too old" in listed(12)

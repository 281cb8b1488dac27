"""The whole way of a sealed image on this machine: keys, broker, seal, push, sign, run; then a byte
is changed at the registry and the image is refused.

``make demo-sealed`` runs it, as root, in some ten seconds.  Everything happens in a temporary
folder and on 127.0.0.1, and is gone afterwards.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo import start_registry

KEK = "demo/image-kek/7"
SECRET = b"The quick brown fox jumps over the lazy dog.\n"
PROVIDER = "provider:attestation-agent"
REFUSED = 1, 4, 12, 125
"""An I/O error, bytes that are not the promised ones, no trust, no container."""


def main() -> int:
    """Tell the story step by step; return the exit status."""
    problem = _problem()
    if problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    # Children get passphrases by their environment, which no process list shows.
    for name in ("COSIGN_PASSWORD", "LAMINA_KBS_PASSWORD"):
        os.environ[name] = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="lamina-sealed-") as name:
        os.chdir(name)
        make_image(Path("image"))
        with start_registry(Path(name)) as port:
            _story(f"127.0.0.1:{port}/demo:7")
    print("\nEverything held.")
    return 0


def _story(image: str) -> None:
    _title("The owner makes a signing key, and a broker with a key for this release.")
    lamina("key", "generate", "owner")
    lamina("kbs", "init", "--dir", "broker")
    lamina("kbs", "put", "--dir", "broker", KEK, "--random", "--anybody")
    with broker() as url:
        kbs = ("--kbs", url, "--kbs-ca", "broker/ca.crt")
        _title("Seal, push, sign: after this the registry has ciphertext and a signature.")
        key = f"{PROVIDER}:keyid=kbs:///{KEK}"
        lamina("convert", "--seal", "--encryption-key", key, *kbs, "oci:image:latest", image)
        signed = lamina("sign", "--key", "owner.key", "--release", "7", image).strip()
        print(f"  nothing of the file at the registry: {not found_in(Path('registry'), SECRET)}")

        _title("From now on the broker gives the key to one measurement, for this image.")
        rule = ("--image-digest", signed, "--min-release", "7")
        lamina("kbs", "policy", "--dir", "broker", KEK, "--measurement", "good", *rule)
        write_policy(Path("policy.json"), image)

        _title("A guest verifies, attests itself, gets the key, and runs the image lazily.")
        guest = ("run", "--rm", "--policy", "policy.json", *kbs)
        command = ("/bin/busybox", "cat", "/secret.txt")
        good = ("--kbs-measurement", "good")
        shown = lamina(*guest, *good, "--store", "store1", image, *command)
        expect(SECRET.decode() in shown, "the guest read its file")
        whole = ("/bin/busybox", "md5sum", "/data.bin")
        shown = lamina(*guest, *good, "--store", "store2", image, *whole)
        expect(shown.endswith("/data.bin\n"), "and all of a larger one")

        _title("A guest that runs something else.")
        bad = ("--kbs-measurement", "bad")
        refused(*guest, *bad, "--store", "store3", image, *command)

        _title("The registry changes one byte.")
        flip_byte(Path("registry"), image)
        refused(*guest, *good, "--store", "store4", image, *whole)

    _title("What the broker wrote down:")
    for line in Path("broker/audit.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["event"] == "resource":
            print(f"  {entry['measurement']:<6} {entry['result']:<8} {entry.get('reason', '')}")


def _title(text: str) -> None:
    print(f"\n{text}", flush=True)


def _problem() -> str | None:
    if os.geteuid() != 0:
        return "needs root, because it starts a container"
    programs = ("busybox", "docker-registry", "runc", "lamina")
    absent = [name for name in programs if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def expect(so: bool, what: str) -> None:
    """Say that it is so, or end the demo."""
    if not so:
        raise SystemExit(f"demo: it is not so that {what}")
    print(f"  {what}", flush=True)


def lamina(*arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run a command and show it; its standard output.  Its standard error goes to the terminal."""
    print(f"$ lamina {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        ["lamina", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.stdout.strip():
        print(f"  {done.stdout.strip()}")
    if done.returncode not in codes:
        raise SystemExit(f"demo: exit status {done.returncode}")
    return done.stdout


def refused(*arguments: str) -> None:
    """Run a command that has to fail, without a byte of output."""
    shown = lamina(*arguments, codes=REFUSED)
    expect(not shown, "it was refused, and nothing was read")


def make_image(layout: Path) -> None:
    """An OCI layout with busybox and a secret."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    tar = io.BytesIO()
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data, mode in (
            ("bin/busybox", busybox, 0o755),
            ("secret.txt", SECRET, 0o644),
            # Enough that the secret is not all there is.
            ("data.bin", secrets.token_bytes(4 << 20), 0o644),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))

    def add(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    kind = "application/vnd.oci.image"
    layer = add(gzip.compress(tar.getvalue(), 1), f"{kind}.layer.v1.tar+gzip")
    diff_id = f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}"
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "amd64")
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/busybox", "sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": add(json.dumps(config).encode(), f"{kind}.config.v1+json"),
        "layers": [layer],
    }
    manifest = add(json.dumps(document).encode(), f"{kind}.manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def write_policy(path: Path, image: str) -> None:
    """Only this repository, only signed by the owner."""
    signed = [{"type": "sigstoreSigned", "keyPath": os.path.abspath("owner.pub")}]
    scopes = {image.rpartition(":")[0]: signed}
    path.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": scopes}}))


@contextmanager
def broker() -> Iterator[str]:
    """``lamina kbs serve``; its address."""
    command = ["lamina", "kbs", "serve", "--dir", "broker", "--listen", "127.0.0.1:0", "--json"]
    print(f"$ {' '.join(command)} &", flush=True)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())["url"]
        finally:
            server.terminate()


def found_in(folder: Path, text: bytes) -> bool:
    """Whether a file below the folder has the text in it."""
    return any(text in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def flip_byte(storage: Path, image: str) -> None:
    """Change the middle of the biggest blob at the registry."""
    path = max(storage.rglob("data"), key=lambda each: each.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    print(f"  one bit of {len(data)} bytes of {image} is another one")


if __name__ == "__main__":
    sys.exit(main())

"""Two confidential guests of one host: a sealed image, the host's cache, and then a host that lies.

``make demo-guest`` runs it after ``make guest-image``, in some minutes, since the guests are
emulated.  Everything happens in a temporary folder and on 127.0.0.1, and is gone afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo import start_registry
from demo_sealed import (
    KEK,
    PROVIDER,
    SECRET,
    broker,
    expect,
    flip_byte,
    found_in,
    lamina,
    make_image,
)

QEMU = "qemu-system-x86_64"
HOST = "10.0.2.2"
"""The host's loopback in QEMU's user network."""
POLICY, SIGNER = "demo/policy/images", "demo/key/owner"
DEADLINE_S = 600
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check lamina.initdata=/dev/vda "
    "lamina.address=10.0.2.15/24 lamina.evidence=sample"
)


def main() -> int:
    """Tell the story step by step; return the exit status."""
    parts = Path(sys.argv[1] if len(sys.argv) > 1 else "build/guest-image").resolve()
    absent = [
        name for name in (QEMU, "docker-registry", "lamina", "busybox") if not shutil.which(name)
    ]
    if absent or not (parts / "initrd").exists():
        wanted = ", ".join(absent) or f"{parts}/initrd (make guest-image)"
        print(f"demo: not there: {wanted}", file=sys.stderr)
        return 1
    for name in ("COSIGN_PASSWORD", "LAMINA_KBS_PASSWORD"):
        os.environ[name] = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="lamina-guest-demo-") as name:
        os.chdir(name)
        make_image(Path("image"))
        with start_registry(Path(name)) as port:
            _story(parts, f"127.0.0.1:{port}/demo:7")
    print("\nEverything held.")
    return 0


def _story(parts: Path, image: str) -> None:
    _title("The owner makes a key for signing, and a broker that guests reach.")
    lamina("key", "generate", "owner")
    lamina("kbs", "init", "--dir", "broker", "--name", HOST)
    lamina("kbs", "put", "--dir", "broker", KEK, "--random", "--anybody")
    with broker() as url:
        _title("Seal, push, sign: after this the registry has ciphertext and a signature.")
        key = f"{PROVIDER}:keyid=kbs:///{KEK}"
        kbs = ("--kbs", url, "--kbs-ca", "broker/ca.crt")
        lamina("convert", "--seal", "--encryption-key", key, *kbs, "oci:image:latest", image)
        lamina("sign", "--key", "owner.key", "--release", "7", image)

        _title("What a guest is to believe is in its init-data, whose digest the broker demands.")
        init_data = write_init_data(url)
        allow(init_data, image)

        with cache(image, Path("cache")) as address:
            _title("The first guest fetches, the second one has it from the host.")
            for name in ("first", "second"):
                shown = guest(parts, init_data, image, address)
                expect(SECRET.decode().strip() in shown, f"the {name} guest read its file")
            for folder in ("registry", "cache"):
                expect(
                    not found_in(Path(folder), SECRET), f"nothing of the file is in the {folder}"
                )

            _title("The host starts a guest with init-data of its own.")
            changed = Path("changed.toml")
            changed.write_text(init_data.read_text() + "# the host's\n")
            _refused(guest(parts, changed, image, address))

        _title("The host changes what is stored.")
        flip_byte(Path("registry"), image)
        with cache(image, Path("cache-2")) as address:
            _refused(guest(parts, init_data, image, address))


def _refused(shown: str) -> None:
    expect(SECRET.decode().strip() not in shown, "nothing was read")
    expect("exit code 0" not in shown, "and the guest says that it failed")


def _title(text: str) -> None:
    print(f"\n{text}", flush=True)


def write_init_data(url: str) -> Path:
    """The broker and its certificate, the policy, and what is run."""
    port = url.rpartition(":")[2]
    path = Path("initdata.toml")
    path.write_text(
        'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n'
        "lamina-command = \"/bin/busybox sh -c 'md5sum /data.bin && cat /secret.txt'\"\n"
        f'"cdh.toml" = \'\'\'\n[kbc]\nname = "cc_kbc"\nurl = "https://{HOST}:{port}"\n'
        f'kbs_cert = """\n{Path("broker/ca.crt").read_text()}"""\n'
        f"[image]\nimage_security_policy_uri = \"kbs:///{POLICY}\"\n'''\n"
    )
    return path


def allow(init_data: Path, image: str) -> None:
    """Give policy and keys to guests with this init-data, and to no others."""
    signed = [{"type": "sigstoreSigned", "keyPath": f"kbs:///{SIGNER}", "minimumRelease": 7}]
    scopes = {image.rpartition(":")[0]: signed}
    policy = {"default": [{"type": "reject"}], "transports": {"docker": scopes}}
    Path("policy.json").write_text(json.dumps(policy))
    for name in ("policy.json", "owner.pub"):
        Path(name).chmod(0o600)
    rule = ("--measurement", hashlib.sha384(init_data.read_bytes()).hexdigest())
    lamina("kbs", "put", "--dir", "broker", POLICY, "--value-file", "policy.json", *rule)
    lamina("kbs", "put", "--dir", "broker", SIGNER, "--value-file", "owner.pub", *rule)
    lamina("kbs", "policy", "--dir", "broker", KEK, *rule)


@contextmanager
def cache(image: str, store: Path) -> Iterator[str]:
    """``lamina serve cache``; its address as guests see it."""
    command = ["lamina", "serve", "--json", "cache", image.rpartition("/")[0]]
    command += ["--listen", "127.0.0.1:0", "--store", str(store)]
    print(f"$ {' '.join(command)} &", flush=True)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            port = json.loads(server.stdout.readline())["url"].rpartition(":")[2]
            yield f"http://{HOST}:{port}"
        finally:
            server.terminate()


def guest(parts: Path, init_data: Path, image: str, address: str) -> str:
    """Boot a guest, and show and return what it says; its kernel's own lines are left out."""
    data = init_data.read_bytes()
    Path("initdata.img").write_bytes(data + bytes(-len(data) % 512))
    line = f"{COMMAND_LINE} lamina.image={image} lamina.cache={address}"
    print(f"$ {QEMU} ... -append '... lamina.image={image} lamina.cache={address}'", flush=True)
    command = [
        *(QEMU, "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1536"),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(parts / "vmlinuz"), "-initrd", str(parts / "initrd"), "-append", line),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"),
        *("-drive", "if=virtio,format=raw,readonly=on,file=initdata.img"),
    ]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    lines = [each for each in done.stdout.splitlines() if not re.match(r"\[ *[0-9.]+\]", each)]
    shown = "\n".join(each for each in lines if each.strip() and "insmod" not in each)
    print("\n".join(f"  {each}" for each in shown.splitlines()), flush=True)
    return shown


if __name__ == "__main__":
    sys.exit(main())

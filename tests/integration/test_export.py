"""``lamina export``: disks that veritysetup, qemu-img and Nydus's own oracle agree with."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from lamina.block.disk import DiskView
from lamina.block.export import export_disk
from lamina.block.hash_area import make_hash_area
from lamina.block.verity import VerityOptions, spare_of_nydus
from lamina.erofs.flatten import Layout
from tests.support import tools
from tests.support.native_images import build_image, open_bootstrap, push_image
from tests.support.native_images import some_bytes as some
from tests.support.serving import FolderSource

pytestmark = pytest.mark.tools
NYDUS_DISK = "5684c330c622350c12d633d0773201f862b9955375d806670e1aaf36ef038b31"
NYDUS_ROOT = "0e577911b78a08d2b0efc5145ac2278a515289f3d16b4a5d40ad57a9fce43da5"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    layout = tmp_path_factory.mktemp("image") / "layout"
    files = {b"a/large": some(700_001, 1), b"zeros": bytes(1 << 20)}
    files |= {b"d/%d" % n: some(n * 333, n) for n in range(80)}
    push_image(build_image(files, chunk_size=65536, blob_count=2), layout)
    return f"oci:{layout}:latest"


def export(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    from lamina.cli.dispatch import run_command

    capfd.readouterr()
    assert run_command(["export", "--json", *map(str, arguments)]) == 0, capfd.readouterr().err
    found: dict[str, object] = json.loads(capfd.readouterr().out)
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_STORE", str(tmp_path / "store"))


def test_the_disk_is_sparse_reproducible_and_accepted(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (fsck,) = tools.require_tool("fsck.erofs")
    first = export(capfd, reference, tmp_path / "one")
    again = export(capfd, "--store", tmp_path / "other", reference, tmp_path / "two")
    assert first["sha256"] == again["sha256"]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert run(fsck, tmp_path / "one").returncode == 0
    status = (tmp_path / "one").stat()
    assert status.st_size == first["size"]
    assert status.st_blocks * 512 < status.st_size - (800 << 10)


@pytest.mark.parametrize("where", ["behind", "beside"])
@pytest.mark.parametrize("salt", ["", "00" * 3 + "ff" * 29])
def test_veritysetup_accepts_the_tree_and_nothing_else(
    reference: str, where: str, salt: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (veritysetup,) = tools.require_tool("veritysetup")
    disk = tmp_path / "disk"
    options: list[str | Path] = ["--verity", "veritysetup", "--salt", salt]
    command: list[str | Path] = [veritysetup, "verify", disk]
    if where == "beside":
        options += ["--hash-file", tmp_path / "hash"]
        made = export(capfd, *options, reference, disk)
        command.append(tmp_path / "hash")
    else:
        made = export(capfd, *options, reference, disk)
        command += [disk, f"--hash-offset={made['hash_offset']}"]
    root = str(made["root_hash"])
    done = run(*command, root)
    assert done.returncode == 0, done.stderr
    assert f" {root} {salt or '-'}" in str(made["table"])
    with disk.open("r+b") as file:
        file.seek(5 * 4096 + 7)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert run(*command, root).returncode != 0


@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
def test_qemu_reads_the_same_disk_in_every_format(
    reference: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (qemu_img,) = tools.require_tool("qemu-img")
    export(capfd, reference, tmp_path / "raw")
    export(capfd, "--format", kind, reference, tmp_path / f"disk.{kind}")
    done = run(
        qemu_img, "compare", "-f", "raw", "-F", kind, tmp_path / "raw", tmp_path / f"disk.{kind}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Images are identical" in done.stdout


def test_what_is_there_is_not_replaced(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from lamina.cli.dispatch import run_command

    (tmp_path / "disk").write_bytes(b"precious")
    assert run_command(["export", reference, str(tmp_path / "disk")]) == 2
    assert (tmp_path / "disk").read_bytes() == b"precious"
    export(capfd, "--force", reference, tmp_path / "disk")
    assert (tmp_path / "disk").stat().st_size > 700_000
    assert list(tmp_path.glob(".*")) == []


def test_a_disk_of_nydus_is_its_own_oracle(tmp_path: Path) -> None:
    """The hash is of a unit test of Nydus (``service/src/block_device.rs``)."""
    folder = tools.require_shared("fixtures", "rafs")
    with open_bootstrap(
        folder / "bootstrap" / "rafs-v6-2.2.boot", FolderSource(folder), store=tmp_path / "store"
    ) as image:
        view = DiskView(image, Layout.NYDUS)
        area = make_hash_area(view, VerityOptions(spare_digest=spare_of_nydus()), None)
        disk, verity = area.behind(view)
        made = export_disk(disk, tmp_path / "disk")
    assert made.sha256.hex() == NYDUS_DISK
    assert hashlib.sha256((tmp_path / "disk").read_bytes()).hexdigest() == NYDUS_DISK
    assert verity.root.hex() == NYDUS_ROOT
    assert (verity.data_blocks, verity.hash_offset_bytes) == (521, 2134016)


def test_partitions_are_as_others_read_them(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sfdisk, veritysetup = tools.require_tool("sfdisk", "veritysetup")
    disk = tmp_path / "disk"
    export(capfd, reference, tmp_path / "plain")
    made = export(capfd, "--gpt", "--verity", "veritysetup", reference, disk)
    again = export(capfd, "--gpt", "--verity", "veritysetup", reference, tmp_path / "again")
    assert made["sha256"] == again["sha256"]
    done = run(sfdisk, "--verify", disk)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No errors detected" in done.stdout
    table = json.loads(run(sfdisk, "--json", disk).stdout)["partitiontable"]
    assert table["label"] == "gpt"
    root, tree = table["partitions"]
    assert root["type"] == "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
    assert tree["type"] == "2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5"
    told = str(made["root_hash"])
    assert (root["uuid"] + tree["uuid"]).replace("-", "").lower() == told
    assert (root["name"], tree["name"]) == ("root", "root-verity")
    data = disk.read_bytes()
    parts = []
    for each in (root, tree):
        path = tmp_path / each["name"]
        path.write_bytes(data[each["start"] * 512 :][: each["size"] * 512])
        parts.append(path)
    assert parts[0].read_bytes() == (tmp_path / "plain").read_bytes()
    done = run(veritysetup, "verify", *parts, told)
    assert done.returncode == 0, done.stderr


def test_a_disk_without_a_tree_has_one_partition(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (sfdisk,) = tools.require_tool("sfdisk")
    export(capfd, "--gpt", "--format", "qcow2", reference, tmp_path / "disk.qcow2")
    (qemu_img,) = tools.require_tool("qemu-img")
    raw = tmp_path / "raw"
    assert run(qemu_img, "convert", "-O", "raw", tmp_path / "disk.qcow2", raw).returncode == 0
    (root,) = json.loads(run(sfdisk, "--json", raw).stdout)["partitiontable"]["partitions"]
    assert root["attrs"] == "GUID:60"


def decrypted(disk: Path, passphrase: Path) -> bytes:
    """What cryptsetup makes of a LUKS2 disk, in place and without the kernel."""
    cryptsetup = tools.require_tool("cryptsetup")[0]
    header = disk.with_suffix(".header")
    size = disk.stat().st_size - (16 << 20)
    command = [cryptsetup, "reencrypt", "--decrypt", "--force-offline-reencrypt", "-q"]
    done = run(*command, "--header", header, "--key-file", passphrase, disk)
    assert done.returncode == 0, done.stderr
    return disk.read_bytes()[:size]


def test_dm_crypt_is_aes_xts_of_sectors(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key = bytes(range(64))
    (tmp_path / "key").write_bytes(key)
    options: list[str | Path] = ["--verity", "veritysetup"]
    plain = export(capfd, *options, reference, tmp_path / "plain")
    options += ["--encrypt", "dm-crypt", "--key-file", tmp_path / "key"]
    made = export(capfd, *options, reference, tmp_path / "disk")
    assert made["root_hash"] == plain["root_hash"]
    sectors = int(str(made["size"])) // 512
    table = f"0 {sectors} crypt aes-xts-plain64 KEY 0 DISK 0 1 sector_size:4096"
    assert made["crypt_table"] == table
    content = (tmp_path / "disk").read_bytes()
    assert bytes(4096) not in {content[at : at + 4096] for at in range(0, len(content), 4096)}
    # Behind a header of cryptsetup's with the same key it is a disk of cryptsetup's.
    luks = tmp_path / "luks"
    luks.write_bytes(bytes(16 << 20) + content)
    (cryptsetup,) = tools.require_tool("cryptsetup")
    command = [cryptsetup, "luksFormat", "-q", "--type", "luks2", "--key-size", "512"]
    command += ["--sector-size", "4096", "--offset", "32768", "--volume-key-file", tmp_path / "key"]
    assert run(*command, "--key-file", tmp_path / "key", luks).returncode == 0
    assert decrypted(luks, tmp_path / "key") == (tmp_path / "plain").read_bytes()


def test_luks2_opens_with_its_passphrase(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (cryptsetup,) = tools.require_tool("cryptsetup")
    (tmp_path / "key").write_bytes(b"a secret\n")
    (tmp_path / "wrong").write_bytes(b"a secret")
    export(capfd, reference, tmp_path / "plain")
    disk = tmp_path / "disk"
    export(capfd, "--encrypt", "luks2", "--key-file", tmp_path / "key", reference, disk)
    test = [cryptsetup, "open", "--test-passphrase", "--key-file"]
    assert run(*test, tmp_path / "key", disk).returncode == 0
    assert run(*test, tmp_path / "wrong", disk).returncode == 2
    dump = json.loads(run(cryptsetup, "luksDump", "--dump-json-metadata", disk).stdout)
    segment = dump["segments"]["0"]
    assert (segment["encryption"], segment["sector_size"]) == ("aes-xts-plain64", 4096)
    assert (segment["size"], segment["iv_tweak"]) == ("dynamic", "0")
    assert decrypted(disk, tmp_path / "key") == (tmp_path / "plain").read_bytes()


def test_qcow2_is_encrypted_as_qemu_has_it(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (qemu_img,) = tools.require_tool("qemu-img")
    (tmp_path / "key").write_bytes(b"a secret")
    (tmp_path / "wrong").write_bytes(b"a guess")
    export(capfd, reference, tmp_path / "plain")
    disk = tmp_path / "disk.qcow2"
    options = ["--format", "qcow2", "--encrypt", "qcow2", "--key-file", tmp_path / "key"]
    export(capfd, *options, reference, disk)
    information = json.loads(run(qemu_img, "info", "--output=json", disk).stdout)
    assert information["encrypted"]
    assert information["format-specific"]["data"]["encrypt"]["format"] == "luks"
    for key, code in (("key", 0), ("wrong", 2)):
        secret = f"secret,id=s,file={tmp_path / key}"
        done = run(
            *(qemu_img, "compare", "--object", secret, "--image-opts"),
            f"driver=raw,file.filename={tmp_path}/plain",
            f"driver=qcow2,encrypt.key-secret=s,file.filename={disk}",
        )
        assert done.returncode == code, done.stderr
    assert disk.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".*"))


def test_a_qcow2_that_is_made_anew_is_its_owners_only(
    reference: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a busy machine, where qemu-img gives up, and takes its file away."""
    (qemu_img,) = tools.require_tool("qemu-img")
    program = tmp_path / "bin" / "qemu-img"
    program.parent.mkdir()
    program.write_text(
        f"""#!/bin/sh
        if [ "$1" = convert ] && mkdir {tmp_path}/tried 2>/dev/null; then
            for last; do :; done
            rm -f "$last"
            echo "qemu-img: Unable to get accurate CPU usage" >&2
            exit 1
        fi
        exec {qemu_img} "$@"
        """
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    export(capfd, "--format", "qcow2", reference, tmp_path / "disk")
    assert (tmp_path / "tried").exists()
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o600


def test_a_compressed_disk_is_smaller_and_the_same_tree(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tools.require_root()
    fsck, mkfs, veritysetup = tools.require_tool("fsck.erofs", "mkfs.erofs", "veritysetup")
    del mkfs
    files = {b"d/%d" % n: (b"%d " % n) * 40_000 for n in range(20)}
    push_image(build_image(files, chunk_size=65536), tmp_path / "layout")
    image = f"oci:{tmp_path}/layout:latest"
    plain = export(capfd, image, tmp_path / "plain")
    options = ["--compress", "lz4hc", "--verity", "veritysetup"]
    made = export(capfd, *options, image, tmp_path / "one")
    again = export(capfd, *options, image, tmp_path / "two")
    assert made["sha256"] == again["sha256"]
    assert int(str(made["size"])) < int(str(plain["size"])) // 4
    disk = tmp_path / "one"
    offset = f"--hash-offset={made['hash_offset']}"
    assert run(veritysetup, "verify", disk, disk, str(made["root_hash"]), offset).returncode == 0
    out = tmp_path / "out"
    done = run(fsck, f"--extract={out}", disk)
    assert done.returncode == 0, done.stderr
    for name, content in files.items():
        assert (out / name.decode()).read_bytes() == content
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "options",
    [
        ["--compress", "lz4", "--layout", "nydus"],
        ["--compress", "lz4", "--verity", "veritysetup", "--attach"],
        ["--encrypt", "luks2"],
        ["--key-file", "key"],
        ["--encrypt", "qcow2", "--key-file", "key"],
        ["--gpt", "--encrypt", "luks2", "--key-file", "key"],
        ["--gpt", "--verity", "nydus"],
        ["--gpt", "--layout", "nydus"],
        ["--salt", "00"],
        ["--encrypt", "dm-crypt", "--key-file", "key"],
    ],
)
def test_options_that_mean_nothing_together_are_refused(
    reference: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.cli.dispatch import run_command

    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_bytes(b"short")
    assert run_command(["export", *options, reference, "disk"]) == 2
    assert not (tmp_path / "disk").exists()


def refused(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    from lamina.cli.dispatch import run_command

    capfd.readouterr()
    assert run_command(["export", *map(str, arguments)]) != 0
    return capfd.readouterr().err


def test_a_file_is_not_replaced_by_accident(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk-flat.vmdk").write_text("somebody's")
    said = refused(capfd, "--format", "vmdk", reference, tmp_path / "disk.vmdk")
    assert "disk-flat.vmdk already" in said and "--force" in said
    assert (tmp_path / "disk-flat.vmdk").read_text() == "somebody's"
    disk = tmp_path / "disk"
    options = ["--verity", "veritysetup", "--hash-file", tmp_path / "." / "disk", "--force"]
    assert "same file" in refused(capfd, *options, reference, disk)
    options = ["--verity", "veritysetup", "--hash-file", tmp_path / "hash"]
    options += ["--encrypt", "luks2", "--key-file", tmp_path / "key"]
    assert "in clear" in refused(capfd, *options, reference, disk)
    assert not disk.exists()


def test_nothing_in_clear_is_left_when_a_hash_file_cannot_be_written(
    reference: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tools.require_tool("qemu-img")
    folder = tmp_path / "disks"
    folder.mkdir()
    options = ["--format", "qcow2", "--verity", "veritysetup"]
    refused(capfd, *options, "--hash-file", tmp_path / "none" / "hash", reference, folder / "disk")
    assert [path.name for path in folder.iterdir() if path.name != "disk"] == []

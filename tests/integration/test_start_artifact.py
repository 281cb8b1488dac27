"""A start is recorded once and then comes in one request; a wrong artifact harms nobody."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.cli.self_tests import write_layout
from tests.support.containers import small_root
from tests.support.registry_server import RegistryServer, start_registry
from tests.support.sealed import Keys
from tests.support.tools import require_kernel, require_root, require_tool

pytestmark = [pytest.mark.kernel, pytest.mark.tools]

ROOT = Path(__file__).parents[2]
NOISE_BYTES = 4 << 20
COMMAND = ["/bin/sh", "-c", "head -c 1500000 /ballast | sha256sum"]
OTHER = ["/bin/sh", "-c", "tail -c 1500000 /ballast | sha256sum"]


def noise(size_bytes: int) -> bytes:
    return hashlib.shake_128(b"ballast").digest(size_bytes)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    require_tool("runc")
    require_kernel(6, 12, "file-backed EROFS")
    folder = tmp_path_factory.mktemp("image")
    root = small_root(folder / "root")
    (root / "ballast").write_bytes(noise(NOISE_BYTES))
    with tarfile.open(folder / "layer.tar", "w") as archive:
        archive.add(root, ".")
    plain = (folder / "layer.tar").read_bytes()
    write_layout(folder / "layout", "small", plain, {"Cmd": COMMAND, "User": "app"})
    return folder / "layout"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    require_tool("docker-registry")
    with start_registry(tmp_path_factory.mktemp("registry"), access_log=True) as found:
        yield found


@pytest.fixture(scope="module")
def image(layout: Path, server: RegistryServer) -> str:
    """Converted, and profiled for COMMAND."""
    reference = server.reference("start/native:small")
    lamina("convert", f"oci:{layout}:small", reference)
    done = lamina("profile", "--json", reference, *COMMAND)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["name"] == "sh"
    assert 1_500_000 < report["page_bytes"] < 3_000_000
    return reference


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def lamina(*arguments: str, store: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    # However slow this machine is, what was asked for comes.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "LAMINA_START_WAIT_S": "1000"}
    if store is not None:
        environment["LAMINA_STORE"] = str(store)
    command = [sys.executable, "-m", "lamina", *arguments]
    done = subprocess.run(
        command, capture_output=True, env=environment, timeout=240, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr.decode()
    return done


def requests(server: RegistryServer, before: int = 0) -> list[str]:
    lines = server.logged().splitlines()
    return [line for line in lines if "GET /v2/" in line][before:]


def ran(
    server: RegistryServer, image: str, store: Path, *options: str, command: list[str]
) -> tuple[bytes, list[str]]:
    before = len(requests(server))
    done = lamina("run", "--rm", *options, image, *command, store=store)
    return done.stdout, requests(server, before)


def expected(command: list[str]) -> bytes:
    data = noise(NOISE_BYTES)
    data = data[:1_500_000] if command == COMMAND else data[-1_500_000:]
    return hashlib.sha256(data).hexdigest().encode() + b"  -\n"


@pytest.mark.parametrize("device", ["auto", "fanotify", "fuse"])
def test_a_start_comes_in_one_request(
    image: str, server: RegistryServer, store: Path, device: str
) -> None:
    if device == "fanotify":
        require_kernel(6, 14, "fanotify pre-content events")
    plain, many = ran(
        server, image, store / "a", "--device", device, "--profile", "none", command=COMMAND
    )
    output, few = ran(server, image, store / "b", "--device", device, command=COMMAND)
    assert output == plain == expected(COMMAND)
    # manifest, list of referrers (the tag), configuration, artifact; the metadata come later
    blobs = [line for line in few if "/blobs/" in line]
    # The tree is read ahead without regard to what comes, and a fanotify event may ask for more.
    assert len(blobs) <= (2 if device == "auto" else 6), few
    assert len(many) > len(few) + 3 or device != "auto"


def test_what_came_is_there_the_next_time(image: str, server: RegistryServer, store: Path) -> None:
    ran(server, image, store, command=COMMAND)
    output, asked = ran(server, image, store, command=COMMAND)
    assert output == expected(COMMAND)
    assert not [line for line in asked if "/blobs/" in line]


@pytest.mark.parametrize("device", ["auto", "fuse"])
def test_metadata_come_when_more_is_wanted(
    image: str, server: RegistryServer, store: Path, device: str
) -> None:
    command = ["/bin/sh", "-c", "head -c 1500000 /ballast | sha256sum; find / -xdev | wc -l"]
    output, _ = ran(server, image, store, "--device", device, command=command)
    plain, _ = ran(
        server, image, store / "b", "--device", device, "--profile", "none", command=command
    )
    assert output == plain
    assert output.startswith(expected(COMMAND))
    # All of them are here, and checked.
    lamina("ls", "-R", image, store=store)


def test_a_program_sees_errors_where_metadata_come_damaged(
    layout: Path, server: RegistryServer, store: Path
) -> None:
    reference = server.reference("start/wrong:small")
    lamina("convert", f"oci:{layout}:small", reference)
    lamina("profile", "--runs", "1", reference)
    inspected = json.loads(lamina("inspect", "--raw", reference).stdout)
    path = server.blob_path(inspected["layers"][-1]["digest"])
    sound = path.read_bytes()
    data = bytearray(sound)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    # A shell that cannot be read any more may be killed for it.
    script = "head -c 1500000 /ballast | sha256sum; ls -lR / >/dev/null 2>&1 && echo all"
    command = [sys.executable, "-m", "lamina", "run", "--rm", reference, "/bin/sh", "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "LAMINA_STORE": str(store)}
    environment["LAMINA_START_WAIT_S"] = "1000"
    done = subprocess.run(command, capture_output=True, env=environment, timeout=240)
    # The other tests' images have the same.
    path.write_bytes(sound)
    assert done.returncode
    assert done.stdout in (b"", expected(COMMAND))
    assert b"the metadata layer comes damaged" in done.stderr


def kept_profiles(store: Path) -> list[int]:
    lines = lamina("images", "--json", store=store).stdout.splitlines()
    return [json.loads(line)["profiles"] for line in lines]


def test_images_tell_which_starts_are_kept(image: str, server: RegistryServer, store: Path) -> None:
    ran(server, image, store, "--profile", "none", command=COMMAND)
    assert kept_profiles(store) == [0]
    assert b"profile" not in lamina("images", store=store).stdout
    ran(server, image, store, command=COMMAND)
    assert kept_profiles(store) == [1]
    assert b"  profile" in lamina("images", store=store).stdout
    # They stay with their image.
    lamina("gc", "--older-than", "1h", store=store)
    assert kept_profiles(store) == [1]


def test_the_artifact_of_another_command_does_no_harm(
    image: str, server: RegistryServer, store: Path
) -> None:
    output, _ = ran(server, image, store, command=OTHER)
    assert output == expected(OTHER)


def test_it_can_be_shown_edited_and_attached_again(image: str, tmp_path: Path) -> None:
    text = lamina("profile", "show", image, "sh").stdout.decode()
    assert "/ballast\n" in text
    assert "/etc/passwd\n" in text
    rows = [row for row in text.splitlines()[1:] if not row.endswith("/ballast")]
    edited = tmp_path / "profile"
    edited.write_text("\n".join(rows) + "\n")
    lamina("profile", "--from", str(edited), "--as", "edited", image)
    shown = lamina("profile", "--json", "show", image).stdout.splitlines()
    found = {row["name"]: row for row in map(json.loads, shown)}
    assert 0 < found["edited"]["pages"] < found["sh"]["pages"]
    # What is chosen is that of the command, or what is named.
    again = lamina("profile", "show", image, "edited").stdout.decode()
    assert "/ballast\n" not in again


def test_an_indexed_image_has_one_too(layout: Path, server: RegistryServer, store: Path) -> None:
    reference = server.reference("start/indexed:small")
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:small", reference],
        check=True,
    )
    lamina("index", reference)
    lamina("profile", "--runs", "1", reference)
    output, few = ran(server, reference, store, command=[])
    assert output == expected(COMMAND)
    assert len([line for line in few if "/blobs/" in line]) <= 5, few


def test_an_artifact_that_is_damaged_in_the_registry_does_no_harm(
    layout: Path, server: RegistryServer, store: Path
) -> None:
    reference = server.reference("start/damaged:small")
    lamina("convert", f"oci:{layout}:small", reference)
    lamina("profile", "--runs", "1", reference)
    shown = json.loads(lamina("profile", "--json", "show", reference).stdout)
    path = server.blob_path(shown["layer_digest"])
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)
    output, _ = ran(server, reference, store, command=[])
    assert output == expected(COMMAND)
    path.write_bytes(data[: len(data) // 2])
    output, _ = ran(server, reference, store / "cut", command=[])
    assert output == expected(COMMAND)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def sealed(layout: Path, server: RegistryServer, keys: Keys) -> str:
    """Sealed, and profiled for COMMAND."""
    reference = server.reference("start/sealed:small")
    key = f"jwe:{keys.public}"
    lamina("convert", "--seal", "--encryption-key", key, f"oci:{layout}:small", reference)
    lamina("profile", "--runs", "1", "--decryption-key", keys.private, reference, *COMMAND)
    return reference


def test_the_artifact_of_a_sealed_image_is_sealed(
    sealed: str, server: RegistryServer, keys: Keys, store: Path
) -> None:
    option = "--decryption-key", keys.private
    output, few = ran(server, sealed, store, *option, command=COMMAND)
    assert output == expected(COMMAND)
    # configuration, metadata layer, leaf tables, artifact
    assert len([line for line in few if "/blobs/" in line]) <= 4, few
    shown = json.loads(lamina("profile", "--json", *option, "show", sealed).stdout)
    assert (shown["name"], shown["command"]) == ("sh", COMMAND)
    # Nobody sees without a key what is in it, what is run, or how long its lists are.
    stored = server.blob_path(shown["layer_digest"]).read_bytes()
    small = [path.read_bytes() for path in server.root.rglob("data") if path.stat().st_size < 9000]
    manifests = [data for data in small if shown["layer_digest"].encode() in data]
    for secret in (noise(NOISE_BYTES)[:32], b"/ballast", b"/bin/sh", b"head -c", b"LAMSTART"):
        assert secret not in stored
        assert not any(secret in manifest for manifest in manifests)
    assert any(b"dev.lamina.start.label" in manifest for manifest in manifests)


def test_an_artifact_that_is_put_in_place_of_a_sealed_one_costs_bytes_only(
    layout: Path, image: str, server: RegistryServer, keys: Keys, store: Path
) -> None:
    reference = server.reference("start/sealed-other:small")
    key, option = f"jwe:{keys.public}", ("--decryption-key", keys.private)
    lamina("convert", "--seal", "--encryption-key", key, f"oci:{layout}:small", reference)
    lamina("profile", "--runs", "1", *option, reference, *COMMAND)
    shown = json.loads(lamina("profile", "--json", *option, "show", reference).stdout)
    path = server.blob_path(shown["layer_digest"])
    data = bytearray(path.read_bytes())
    # The other one is of the same files, so all of its pages would be right.
    other = json.loads(lamina("profile", "--json", "show", image, "sh").stdout)
    clear = server.blob_path(other["layer_digest"]).read_bytes()
    for damaged in (clear, data[: len(data) // 2], bytes(data[:-1]) + bytes([data[-1] ^ 1])):
        path.write_bytes(damaged)
        output, _ = ran(server, reference, store / str(len(damaged)), *option, command=COMMAND)
        assert output == expected(COMMAND)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_profile_becomes_part_of_an_image(
    image: str,
    layout: Path,
    server: RegistryServer,
    keys: Keys,
    store: Path,
    tmp_path: Path,
    *,
    is_sealed: bool,
) -> None:
    profile = tmp_path / "sh.profile"
    text = lamina("profile", "show", image, "sh").stdout.decode()
    profile.write_text(text.partition("\n")[2])
    reference = server.reference(f"start/own{is_sealed:d}:small")
    seal = ("--seal", "--encryption-key", f"jwe:{keys.public}") if is_sealed else ()
    option = ("--decryption-key", keys.private) if is_sealed else ()
    done = lamina(
        *("convert", "--json", "--profile", str(profile), *seal), f"oci:{layout}:small", reference
    )
    report = json.loads(done.stdout)["images"][0]
    assert 1_000_000 < report["start_bytes"] < report["image_bytes"]
    output, few = ran(server, reference, store, *option, command=COMMAND)
    assert output == expected(COMMAND)
    # Nothing is looked up: manifest, configuration, artifact; sealed metadata and leaf tables.
    assert len([line for line in few if "/manifests/" in line]) == 1, few
    assert not [line for line in few if "/referrers/" in line]
    assert len([line for line in few if "/blobs/" in line]) == 2 + 2 * is_sealed, few
    if not is_sealed:
        # It is known as an image once its metadata are here.
        lamina("ls", reference, store=store)
    lamina("gc", "--older-than", "1h", store=store)
    assert kept_profiles(store) == [1]
    output, _ = ran(server, reference, store / "other", *option, command=OTHER)
    assert output == expected(OTHER)
    shown = json.loads(lamina("profile", "--json", *option, "show", reference).stdout)
    assert shown["command"] == COMMAND
    lamina("check", *option, reference)
    # It is copied as the layer that it is.
    lamina("copy", reference, f"oci:{tmp_path / 'copy'}:small")
    again = json.loads(
        lamina("profile", "--json", *option, "show", f"oci:{tmp_path / 'copy'}:small").stdout
    )
    assert again["layer_digest"] == shown["layer_digest"]


def test_what_others_read_of_a_mount_is_recorded(
    layout: Path, server: RegistryServer, store: Path, tmp_path: Path
) -> None:
    reference = server.reference("start/mounted:small")
    lamina("convert", f"oci:{layout}:small", reference)
    folder = tmp_path / "mnt"
    folder.mkdir()
    # The reader waits for the mount, and the recorder for the reader.
    script = 'until [ -e "$1/ballast" ]; do sleep 0.05; done; dd if="$1/ballast" bs=8192 count=2'
    with subprocess.Popen(
        ["/bin/sh", "-c", script, "reader", str(folder)], stdout=subprocess.PIPE
    ) as reader:
        lamina(
            *("profile", "--mount", str(folder), "--until", f"pid:{reader.pid}", "--as", "dd"),
            reference,
            store=store,
        )
        assert reader.stdout is not None
        assert reader.stdout.read() == noise(16384)
    text = lamina("profile", "show", reference, "dd").stdout.decode()
    assert "\n0-3 /ballast\n" in text
    assert not os.listdir(folder)

"""Conversions against the tools that others unpack, check and mount images with."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lamina.blob.framing import read_bootstrap
from lamina.build.convert import convert
from lamina.build.options import ConvertOptions
from lamina.build.source_image import open_source_image
from lamina.codec.compress import Compressor
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.oci.reference import parse_reference
from tests.support import layers, tools
from tests.support.layers import Item, folder, hard_link, oci_layout, opaque, symlink, whiteout
from tests.support.nydusd import nydusd_mount
from tests.support.opening import open_image
from tests.support.registry_server import RegistryServer

pytestmark = pytest.mark.tools

VARIANTS: list[dict[str, Any]] = [
    {},
    {"chunk_size": 1 << 20, "pack_size": 0},
    {"chunk_size": 1 << 16, "pack_size": 1 << 14, "compressor": Compressor.LZ4_BLOCK},
    {"compressor": Compressor.NONE},
]
DEBIAN = [
    pytest.param("minbase"),
    pytest.param("node", marks=pytest.mark.slow),
    pytest.param("python", marks=pytest.mark.slow),
]


def differences(left: Any, right: Any) -> list[str]:
    return [str(difference) for difference in compare(left, right)]


def umoci_unpack(layout: Path, target: Path, tag: str = "latest") -> FolderImage:
    """Unpack with umoci, which needs root for owners and devices."""
    tools.require_root()
    [umoci] = tools.require_tool("umoci")
    command = [umoci, "unpack", "--image", f"{layout}:{tag}", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return FolderImage(target / "rootfs")


def convert_layout(layout: Path, native: Path, **options: Any) -> dict[str, Any]:
    """Convert ``latest`` and return the manifest of the result."""
    source, target = (parse_reference(f"oci:{path}:latest") for path in (layout, native))
    report = convert(source, target, ConvertOptions(**options))
    manifest: dict[str, Any] = json.loads(blob(native, report.digest).read_bytes())
    return manifest


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / Path(*digest.split(":"))


LOWER = [
    folder("./"),
    folder("usr"),
    folder("usr/lib", 0o751, uid=3),
    Item("usr/lib/a", b"a", mode=0o4711, uid=7, gid=8),
    Item("usr/lib/b", b"b"),
    hard_link("usr/lib/b2", "usr/lib/b"),
    symlink("lib", "usr/lib"),
    symlink("up", "../../usr"),
    folder("d", 0o1777),
    Item("d/x", b"x"),
    folder("d/sub", 0o700),
    Item("d/sub/y", b"y"),
    Item("null", kind=layers.CHARACTER, device=(1, 3), mode=0o666),
    Item("disk", kind=layers.BLOCK, device=(8, 300), mode=0o660),
    Item("fifo", kind=layers.FIFO),
    Item("attributes", b"x", xattrs={"user.a": "1"}),
]
UPPERS: dict[str, list[list[Item]]] = {
    # What umoci does otherwise than overlayfs is in test_containerd_overlayfs.
    "nothing": [[]],
    "whiteouts": [[whiteout("d/x"), whiteout("usr/lib/a"), whiteout("fifo"), whiteout("none")]],
    "whiteout of a directory": [[whiteout("d")]],
    "entry, then whiteout": [[folder("d", 0o711), Item("d/new"), whiteout("d")]],
    "whiteout and file of one name": [[whiteout("d"), Item("d", b"file")]],
    "file and whiteout of one name": [[Item("null", b"file"), whiteout("null")]],
    "opaque first": [[folder("d"), opaque("d"), Item("d/new")]],
    "opaque last": [[folder("d"), Item("d/new"), Item("d/sub/z"), opaque("d")]],
    "opaque without directory": [[opaque("d")]],
    "directory to file and back": [[Item("d", b"f")], [folder("d", 0o700), Item("d/again")]],
    "file to directory": [[folder("usr/lib/a"), Item("usr/lib/a/deep")]],
    "link to directory": [[folder("lib"), Item("lib/own")]],
    "link to file": [[Item("lib", b"now a file")]],
    "directory to link": [[symlink("d", "usr")]],
    "metadata only": [[folder("d", 0o500, uid=9, gid=9, mtime=5)]],
    "hard link to below": [[hard_link("linked", "usr/lib/a"), hard_link("l2", "lib/b")]],
    "hard link replaced": [[Item("usr/lib/b", b"new")]],
    "hard link and whiteout": [[hard_link("kept", "d/x"), whiteout("d/x")]],
    "device replaced": [[Item("null", kind=layers.CHARACTER, device=(1, 5))]],
    "attributes replaced": [[Item("attributes", b"x", xattrs={"user.b": "2"})]],
    "whiteouts of whiteouts": [[whiteout("d/x")], [Item("d/x", b"back")], [whiteout("d/x")]],
}


UMOCI_FORGETS_TIMES = ("entry, then whiteout", "opaque last")
"""umoci 0.4 leaves the present as the time of a directory that a later whiteout removes from."""


@pytest.mark.parametrize("name", UPPERS)
def test_merges_as_umoci_does(name: str, tmp_path: Path) -> None:
    content: Sequence[Sequence[Item]] = [LOWER, *UPPERS[name]]
    source = oci_layout(tmp_path / "oci", content)
    unpacked = umoci_unpack(tmp_path / "oci", tmp_path / "bundle")
    convert_layout(tmp_path / "oci", tmp_path / "native", jobs=1)
    with open_source_image(source) as image, open_image(f"oci:{tmp_path}/native") as native:
        assert differences(image, native) == []
        found = differences(native, unpacked)
    if name in UMOCI_FORGETS_TIMES:
        found = [difference for difference in found if ": mtime: " not in difference]
    assert found == []


@pytest.mark.parametrize("name", DEBIAN)
def test_debian_images_equal_umoci(
    name: str, oci_image: Callable[[str], Path], tmp_path: Path
) -> None:
    layout = oci_image(name)
    unpacked = umoci_unpack(layout, tmp_path / "bundle")
    for number, options in enumerate(VARIANTS if name == "minbase" else VARIANTS[:2]):
        native = tmp_path / f"native-{number}"
        manifest = convert_layout(layout, native, **options)
        again = convert_layout(layout, tmp_path / f"again-{number}", **options, jobs=1)
        assert again == manifest, "the same source gives the same digests"
        with open_image(f"oci:{native}:latest") as image:
            assert differences(image, unpacked) == []


def test_from_registry_to_registry(registry: RegistryServer, tmp_path: Path) -> None:
    tools.require_tool("skopeo")
    content = [LOWER, UPPERS["whiteouts"][0]]
    source = oci_layout(tmp_path / "oci", content)
    pushed = registry.reference("convert/source:latest")
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, pushed]
    subprocess.run(command, check=True)
    target = registry.reference("convert/native:latest")
    report = convert(parse_reference(pushed), parse_reference(target), ConvertOptions(jobs=2))
    local = convert_layout(tmp_path / "oci", tmp_path / "native")
    [image] = report.images
    blobs = [layer["digest"] for layer in local["layers"][:-1]]
    assert [layer.blob_digest for layer in image.layers] == blobs
    with open_source_image(source) as wanted, open_image(target) as native:
        assert differences(wanted, native) == []


@pytest.fixture(scope="module")
def native_variants(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[Path, dict[str, Any]]]:
    """A small image of three layers in every variant, with the manifest of each."""
    base = tmp_path_factory.mktemp("variants")
    big = hashlib.shake_256(b"big").digest(3_000_000) + b"text " * 500_000
    content = [
        [*LOWER, Item("big", big), *(Item(f"d/{i}", b"%d" % i * 99) for i in range(500))],
        [Item("again", big[:2_000_000]), hard_link("lib/linked", "big"), whiteout("d/7")],
        [folder("empty"), whiteout("null")],
    ]
    oci_layout(base / "oci", content)
    return [
        (base / f"{number}", convert_layout(base / "oci", base / f"{number}", **options))
        for number, options in enumerate(VARIANTS)
    ]


def bootstraps(layout: Path, manifest: dict[str, Any], target: Path) -> Iterator[Path]:
    """The merged bootstrap, then the one inside each blob, as files named as nydus wants."""
    *blobs, last = manifest["layers"]
    with tarfile.open(blob(layout, last["digest"])) as tar:
        file = tar.extractfile("image/image.boot")
        assert file is not None
        merged = target / "merged.boot"
        merged.write_bytes(file.read())
        yield merged
    for layer in blobs:
        data = blob(layout, layer["digest"]).read_bytes()
        found = read_bootstrap(lambda o, s, d=data: d[o : o + s], len(data))
        assert found is not None
        own = target / layer["digest"].partition(":")[2]
        own.write_bytes(found)
        yield own


def test_nydus_image_accepts_every_bootstrap(
    native_variants: list[tuple[Path, dict[str, Any]]],
    peer: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    program = peer("nydus-image")
    for layout, manifest in native_variants:
        for bootstrap in bootstraps(layout, manifest, tmp_path):
            command = [str(program), "check", "-B", str(bootstrap)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{bootstrap}: {done.stdout}{done.stderr}"


@pytest.mark.usefixtures("as_root")
def test_nydusd_serves_ours(
    native_variants: list[tuple[Path, dict[str, Any]]],
    peer: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    program = peer("nydusd")
    for number, (layout, manifest) in enumerate(native_variants):
        base = tmp_path / str(number)
        base.mkdir()
        bootstrap = next(bootstraps(layout, manifest, base))
        with (
            nydusd_mount(program, bootstrap, layout / "blobs" / "sha256", base) as mountpoint,
            open_image(f"oci:{layout}:latest") as image,
        ):
            assert differences(image, FolderImage(mountpoint)) == []


def start_conversion(layout: Path, native: Path, work: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lamina", "convert", "--work-dir", str(work)]
    command += ["--level", "19", f"oci:{layout}:latest", f"oci:{native}:latest"]
    source_folder = str(Path(__file__).resolve().parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source_folder}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_conversion_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    noise = [Item(str(i), hashlib.shake_256(b"%d" % i).digest(4_000_000)) for i in range(20)]
    text = [Item(f"t{i}", b"%d words to compress " % i * 100_000) for i in range(20)]
    oci_layout(tmp_path / "oci", [noise, text], "none")
    work = tmp_path / "work"
    work.mkdir()
    with start_conversion(tmp_path / "oci", tmp_path / "native", work) as process:
        workers: list[int] = []
        deadline = time.monotonic() + 60
        while not workers and process.poll() is None and time.monotonic() < deadline:
            workers = children_of(process.pid)
            time.sleep(0.01)
        assert workers, "the conversion was over before it could be interrupted"
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(60) != 0
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in workers if os.path.exists(f"/proc/{pid}")] == []
    assert list(work.iterdir()) == []
    index = tmp_path / "native" / "index.json"
    assert not index.exists() or json.loads(index.read_bytes())["manifests"] == []


PEAK_MEMORY = r"""
import re, resource, sys
from lamina.build.convert import convert
from lamina.build.options import ConvertOptions
from lamina.oci.reference import parse_reference
source, target = (parse_reference(f"oci:{path}:latest") for path in sys.argv[1:])
convert(source, target, ConvertOptions(jobs=2))
# Not ru_maxrss of this process, which counts what the test runner had before exec.
own = re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1]
print(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
MEMORY_LIMIT_KIB = 300 << 10


@pytest.mark.slow
def test_memory_is_bounded_for_a_layer_of_gigabytes(tmp_path: Path) -> None:
    """2 GiB of holes and 300 MiB of noise, as a plain tar that is made on the fly."""
    layout = tmp_path / "oci"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    hole, noise = 2 << 30, os.urandom(1 << 20)
    path = blobs / "new"
    with path.open("w+b") as file:
        for item, size in ((Item("hole"), hole), (Item("noise"), 300 << 20)):
            info = item.info()
            info.size = size
            file.write(info.tobuf(tarfile.PAX_FORMAT))
            if item.path == "noise":
                for number in range(300):
                    file.write(hashlib.sha256(b"%d" % number).digest() + noise[32:])
            else:
                file.seek(size, os.SEEK_CUR)
        file.write(bytes(1024))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path.rename(blobs / digest)
    size = (blobs / digest).stat().st_size
    descriptor = layers.add_image(layout, [])
    manifest = json.loads(blob(layout, descriptor["digest"]).read_bytes())
    layer = {"mediaType": layers.LAYER_TYPES["none"], "digest": f"sha256:{digest}", "size": size}
    manifest["layers"] = [layer]
    config = json.loads(blob(layout, manifest["config"]["digest"]).read_bytes())
    config["rootfs"]["diff_ids"] = [layer["digest"]]
    configured = layers.add_blob(
        layout, manifest["config"]["mediaType"], json.dumps(config).encode()
    )
    manifest["config"] = configured
    data = json.dumps(manifest).encode()
    layers.write_index(layout, "latest", layers.add_blob(layout, manifest["mediaType"], data))
    source_folder = str(Path(__file__).resolve().parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, str(layout), str(tmp_path / "native")],
        env={**os.environ, "PYTHONPATH": source_folder, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    own, largest_child = map(int, done.stdout.split())
    assert own + 2 * largest_child < MEMORY_LIMIT_KIB
    with open_image(f"oci:{tmp_path}/native:latest") as image:
        status = image.stat("/noise")
        for number in (0, 150, 299):
            expected = hashlib.sha256(b"%d" % number).digest()
            assert image.pread(status, number << 20, 32) == expected
        assert image.pread(image.stat("/hole"), hole - 10, 100) == bytes(10)

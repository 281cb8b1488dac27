"""Sealed images from conversion to reading, and the threat table of SECURITY.md row by row."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import lamina
from lamina.blob.seal import TAG_BYTES, Padding
from lamina.build.source_image import open_source_image
from lamina.cli.dispatch import run_command
from lamina.errors import (
    FormatError,
    IntegrityError,
    StoreError,
    TrustError,
    UnsupportedError,
    UsageError,
)
from lamina.image.compare import compare
from lamina.image.folder import FolderImage
from lamina.linux.mount_table import parse_mount_table
from lamina.oci import manifest as m
from lamina.oci.reference import parse_reference
from lamina.registry.open_repository import open_repository
from lamina.trust.signatures.image_signature import sign_image
from tests.integration.test_mount_devices import require_device
from tests.support.opening import open_image
from tests.support.range_source import RangeSource
from tests.support.registry_server import RegistryServer
from tests.support.sealed import (
    FILE,
    LAYERS,
    NAMES,
    OTHER_FILE,
    Keys,
    SealedImage,
    flip,
    make_source,
    pushed,
    read_everything,
    seal,
)
from tests.support.tools import require_tool
from tests.unit.trust.keys_in_code import make_key


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.make(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return make_source(tmp_path / "plain")


@pytest.fixture
def image(tmp_path: Path, source: str, keys: Keys) -> SealedImage:
    seal(source, f"oci:{tmp_path}/layout:sealed")
    return SealedImage(tmp_path / "layout", keys)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The command line, in this process, which must stay dumpable for the other tests, and log as
    they expect.
    """
    monkeypatch.setattr("lamina.linux.memory.forbid_core_dumps", lambda: None)
    logger = logging.getLogger("lamina")
    before = logger.level, logger.handlers, logger.propagate
    yield lambda *words: run_command([*words])
    logger.setLevel(before[0])
    logger.handlers, logger.propagate = before[1:]


def test_the_tree_and_configuration_are_those_of_the_source(
    image: SealedImage, source: str, tmp_path: Path
) -> None:
    with (
        closing(image.open(tmp_path / "store")) as opened,
        closing(open_source_image(source)) as wanted,
    ):
        assert list(compare(wanted, opened)) == []
        assert opened.config.config.cmd == ("/vault/start",)
        assert opened.config.config.env == ("TOKEN=hunter2",)


@pytest.mark.parametrize("device", ["fanotify", "fuse-blob", "fuse"])
@pytest.mark.kernel
def test_it_mounts_by_every_device(
    registry: RegistryServer, source: str, keys: Keys, tmp_path: Path, device: str
) -> None:
    require_device(device)
    reference = registry.reference(f"sealed/{device}:1")
    seal(source, reference)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    program = [sys.executable, "-m", "lamina"]
    options = ["--store", str(tmp_path / "store"), "--device", device]
    mount = [*program, "mount", "-q", *options, "--decryption-key", keys.private]
    subprocess.run([*mount, reference, str(mountpoint)], check=True, timeout=60)
    try:
        with closing(open_source_image(source)) as wanted:
            assert list(compare(wanted, FolderImage(str(mountpoint)))) == []
    finally:
        subprocess.run([*program, "umount", "-q", str(mountpoint)], check=True, timeout=60)


def test_without_a_key_nothing_is_opened_or_mounted(
    image: SealedImage,
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    store = ["--store", str(tmp_path / "store")]
    assert command("mount", *store, image.reference, str(mountpoint)) == TrustError.exit_code
    told = capsys.readouterr().err
    assert "is sealed, and its files cannot be seen without a key" in told
    assert not os.path.ismount(mountpoint)
    for verb in ("ls", "unpack"):
        more = [str(tmp_path / "out")] if verb == "unpack" else []
        assert command(verb, *store, image.reference, *more) == TrustError.exit_code


PROVIDER = """\
import base64, json, sys
request = json.load(sys.stdin)
if request["op"] == "keywrap":
    print(json.dumps({"keywrapresults": {"annotation": request["keywrapparams"]["optsdata"]}}))
else:
    print(json.dumps({"keyunwrapresults": {"optsdata": request["keyunwrapparams"]["annotation"]}}))
"""
"""A key provider that keeps nothing secret."""


@pytest.mark.kernel
def test_a_key_provider_of_the_environment_opens_a_mount(
    source: str, tmp_path: Path, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_device("fuse")
    (tmp_path / "provider.py").write_text(PROVIDER)
    program = {"path": sys.executable, "args": [str(tmp_path / "provider.py")]}
    (tmp_path / "ocicrypt.json").write_text(json.dumps({"key-providers": {"p": {"cmd": program}}}))
    monkeypatch.setenv("OCICRYPT_KEYPROVIDER_CONFIG", str(tmp_path / "ocicrypt.json"))
    reference = f"oci:{tmp_path}/provided:1"
    sealing = ["--seal", "--encryption-key", "provider:p:x", source, reference]
    lamina_program = [sys.executable, "-m", "lamina"]
    subprocess.run([*lamina_program, "convert", "-q", *sealing], check=True, timeout=60)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    options = ["-q", "--device", "fuse", "--store", str(tmp_path / "store")]
    mount = [*lamina_program, "mount", *options, reference, str(mountpoint)]
    subprocess.run(mount, check=True, timeout=60)
    try:
        assert (mountpoint / FILE[1:]).read_bytes() == LAYERS[0][FILE[1:]]
    finally:
        subprocess.run([*lamina_program, "umount", "-q", str(mountpoint)], check=True, timeout=60)
    monkeypatch.delenv("OCICRYPT_KEYPROVIDER_CONFIG")
    assert command(*mount[3:]) == TrustError.exit_code


@pytest.mark.parametrize("wrap", [list, str])
def test_fsspec_reads_it_with_a_key(
    image: SealedImage, tmp_path: Path, wrap: type[list[str]] | type[str]
) -> None:
    from lamina.fsspec import LaminaFileSystem

    keys = [image.keys.private] if wrap is list else image.keys.private
    more = {"decryption_keys": keys, "skip_instance_cache": True}
    files = LaminaFileSystem(image.reference, store=str(tmp_path / "store"), **more)
    try:
        assert files.cat_file(FILE) == LAYERS[0][FILE[1:]]
    finally:
        files.close()


def test_a_sealed_image_is_not_indexed(
    image: SealedImage, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("index", image.reference) == UsageError.exit_code
    assert "sealed" in capsys.readouterr().err


def test_another_key_opens_nothing(image: SealedImage, tmp_path: Path) -> None:
    other = Keys.make(tmp_path, 1)
    image.keys = other
    with pytest.raises(TrustError, match="no key opens layer"):
        image.open(tmp_path / "store")


def test_inspect_tells_what_everybody_can_learn_and_with_a_key_the_rest(
    image: SealedImage,
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("inspect", "--json", "--store", str(tmp_path / "store"))
    assert command(*words, image.reference) == 0
    public = json.loads(capsys.readouterr().out)
    assert public["kind"] == "sealed"
    assert public["sealed"]["recipients"] == {"jwe": 1}
    assert public["config"] == {}
    assert "tree" not in public
    assert command(*words, "--decryption-key", image.keys.private, image.reference) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["env"] == ["TOKEN=hunter2"]
    assert told["tree"]["inodes"] > 80


def test_who_has_no_key_checks_every_stored_piece(
    image: SealedImage, command: Callable[..., int], tmp_path: Path
) -> None:
    words = ("check", "-q", "--data", "--store", str(tmp_path / "store"), image.reference)
    assert command(*words) == 0
    flip(image.blob(image.manifest.layers[0]), 5000)
    assert command(*words) == IntegrityError.exit_code


def test_a_recipient_is_added_without_sealing_again(
    image: SealedImage, command: Callable[..., int], tmp_path: Path
) -> None:
    other = Keys.make(tmp_path, 1)
    destination = f"oci:{tmp_path}/more:1"
    options = ["--decryption-key", image.keys.private, "--encryption-key", f"jwe:{other.public}"]
    assert command("encrypt", "-q", *options, image.reference, destination) == 0
    store = tmp_path / "store"
    with closing(open_image(destination, store=store, decryption_keys=[other.private])) as opened:
        assert opened.stat(FILE).size == 40_000


def test_decrypting_a_sealed_image_to_a_registry_is_refused(
    image: SealedImage, command: Callable[..., int], tmp_path: Path
) -> None:
    words = ("decrypt", "--decryption-key", image.keys.private, image.reference)
    assert command(*words, f"oci:{tmp_path}/open:1") == 2


# The threat table: each test has the name of a row.


def test_read_layer_or_metadata_contents(image: SealedImage, source: str) -> None:
    content = LAYERS[0][FILE[1:]]
    assert any(b"hunter2" in data for data in pushed(Path(source.split(":")[1])))
    for data in pushed(image.folder):
        assert content[1000:1032] not in data
        assert b"quick brown fox" not in data
        assert b"hunter2" not in data


def test_read_file_names_or_the_tree(registry: RegistryServer, source: str) -> None:
    seal(source, registry.reference("sealed/names:1"))
    everything = b"".join(pushed(registry.root))
    for name in (*NAMES, b"vault", b"entry-0", b"payroll"):
        assert name not in everything, name
    assert b"vnd.lamina.sealed" in everything


@pytest.mark.tools
def test_read_file_names_or_the_tree_with_strings(
    image: SealedImage, oci_image: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of an image with thousands of files, over everything that is pushed."""
    (program,) = require_tool("strings")
    source = f"oci:{oci_image('node')}:latest"
    options = ["--seal", "--encryption-key", f"jwe:{image.keys.public}"]
    destination = f"oci:{tmp_path}/node:1"
    command = [sys.executable, "-m", "lamina", "convert", "-q", *options, source, destination]
    subprocess.run(command, check=True, timeout=120)
    with closing(open_image(destination, decryption_keys=[image.keys.private])) as opened:
        paths = [os.fsdecode(path).lstrip("/") for path, _ in opened.walk()]
    assert len(paths) > 10_000
    names = {name for path in paths for name in (path, path.rpartition("/")[2]) if len(name) > 7}
    files = [str(path) for path in (tmp_path / "node").rglob("*") if path.is_file()]
    done = subprocess.run([program, "-a", "-n", "8", *files], capture_output=True, check=True)
    lines = done.stdout.decode("ascii", "replace").splitlines()
    assert len(lines) > 1000
    # Words that every sealed image has in its documents are no names of this one.
    common = b"".join(data for data in pushed(image.folder) if data.startswith(b"{")).decode()
    names = {name for name in names if name not in common}
    assert len(names) > 5000
    starts: dict[str, list[str]] = {}
    for name in names:
        starts.setdefault(name[:8], []).append(name)
    for line in lines:
        for at in range(len(line) - 7):
            for name in starts.get(line[at : at + 8], ()):
                assert not line.startswith(name, at), name


def test_learn_content_by_a_known_hash(image: SealedImage, source: str) -> None:
    everything = b"".join(pushed(image.folder))
    for files in LAYERS:
        for content in files.values():
            assert hashlib.sha256(content).digest() not in everything
    with open_repository(parse_reference(source)) as repository:
        plain = m.parse_image_manifest(repository.manifest()[1])
        config = json.loads(repository.open_blob(plain.config).read())
    known = [layer.hex for layer in plain.layers] + config["rootfs"]["diff_ids"]
    for digest in known:
        assert digest.removeprefix("sha256:").encode() not in everything


@pytest.mark.parametrize("where", ["first", "middle", "tag", "last"])
def test_tamper_with_a_chunk(image: SealedImage, tmp_path: Path, where: str) -> None:
    places = {"first": 0, "middle": 20_000, "tag": image.extents(0)[0][1] - 1, "last": -1}
    flip(image.blob(image.manifest.layers[0]), places[where])
    with (
        closing(image.open(tmp_path / "store")) as opened,
        pytest.raises(IntegrityError, match="not the one that was signed"),
    ):
        read_everything(opened)


@pytest.mark.parametrize("layer", [-1, -2], ids=["metadata", "leaves"])
@pytest.mark.parametrize("offset", [0, 700, -1])
def test_tamper_with_metadata(image: SealedImage, tmp_path: Path, layer: int, offset: int) -> None:
    flip(image.blob(image.manifest.layers[layer]), offset)
    with pytest.raises(IntegrityError, match="digest"):
        image.open(tmp_path / "store")


def test_tamper_with_metadata_and_its_digest(image: SealedImage, tmp_path: Path) -> None:
    layer = image.manifest.layers[-1]
    data = bytearray(image.blob(layer).read_bytes())
    data[100] ^= 1
    digest = image.put(bytes(data))
    image.rewrite(lambda document: document["layers"][-1].update(digest=digest))
    with pytest.raises(IntegrityError, match="HMAC"):
        image.open(tmp_path / "store")


def test_tamper_with_a_leaf_table_and_its_digest(image: SealedImage, tmp_path: Path) -> None:
    data = bytearray(image.blob(image.manifest.layers[-2]).read_bytes())
    data[10] ^= 1
    digest = image.put(bytes(data))
    image.rewrite(lambda document: document["layers"][-2].update(digest=digest))
    with pytest.raises(IntegrityError, match="signed root"):
        image.open(tmp_path / "store")


def policy_file(folder: Path, signer: int, release: int = 0) -> str:
    public = folder / f"signer-{signer}.pub"
    public.write_bytes(make_key("P-256", signer).public().pem())
    demand = {"type": "sigstoreSigned", "keyPath": str(public)}
    if release:
        demand |= {"minimumRelease": release, "suite": "cc-rafs/1"}  # type: ignore[dict-item]
    path = folder / "policy.json"
    path.write_text(
        json.dumps({"default": [{"type": "reject"}], "transports": {"docker": {"": [demand]}}})
    )
    return str(path)


def sign(reference: str, signer: int, release: int) -> str:
    with open_repository(parse_reference(reference), write=True) as repository:
        optional = {"release": release, "suite": "cc-rafs/1"}
        return sign_image(repository, make_key("P-256", signer), optional=optional)[0].digest


def test_substitute_an_image_encrypted_to_the_same_public_key(
    registry: RegistryServer, source: str, keys: Keys, tmp_path: Path
) -> None:
    reference = registry.reference("sealed/substituted:1")
    policy = policy_file(tmp_path, 7)
    seal(source, reference)
    sign(reference, 7, 1)

    def opened(store: str) -> lamina.content.lazy_image.LazyImage:
        return open_image(
            reference, store=tmp_path / store, decryption_keys=[keys.private], policy=policy
        )

    with closing(opened("a")) as image:
        assert image.stat(FILE).size == 40_000
    evil = make_source(tmp_path / "evil", ({"vault/launch-codes.bin": b"evil"},))
    seal(evil, reference)
    with pytest.raises(TrustError, match="has no signature"):
        opened("b")
    sign(reference, 8, 1)
    with pytest.raises(TrustError, match="not by a key that is trusted"):
        opened("c")
    # Nothing but the manifest that was looked at was kept, and no blob was begun.
    assert list((tmp_path / "c" / "blobs").iterdir()) == []


@pytest.mark.parametrize("kind", ["inside a blob", "across blobs", "across images"])
def test_chunk_swap(image: SealedImage, source: str, tmp_path: Path, kind: str) -> None:
    blobs = [image.blob(layer) for layer in image.manifest.layers[:2]]
    data = bytearray(blobs[0].read_bytes())
    extents = image.extents(0)
    full = [place for place in extents if place[1] == 4096 + TAG_BYTES]
    (first, size), (second, _) = full[:2]
    other = bytes(data[second : second + size])
    if kind == "across blobs":
        start = next(at for at, length in image.extents(1) if length == size)
        other = blobs[1].read_bytes()[start : start + size]
    elif kind == "across images":
        seal(source, f"oci:{tmp_path}/again:sealed")
        again = SealedImage(tmp_path / "again", image.keys)
        other = again.blob(again.manifest.layers[0]).read_bytes()[first : first + size]
    assert other != data[first : first + size]
    data[first : first + size] = other
    blobs[0].write_bytes(data)
    with (
        closing(image.open(tmp_path / "store")) as opened,
        pytest.raises(IntegrityError, match="not the one that was signed"),
    ):
        opened.pread(opened.stat(FILE), 0, 40_000)


def test_layers_that_are_swapped_or_left_out(image: SealedImage, tmp_path: Path) -> None:
    def swap(document: dict[str, list[object]]) -> None:
        layers = document["layers"]
        layers[0], layers[1] = layers[1], layers[0]

    image.rewrite(swap)
    with pytest.raises((IntegrityError, FormatError)):
        image.open(tmp_path / "store")


@pytest.mark.parametrize("change", ["truncated", "extended", "dropped chunk"])
def test_truncation_extension_or_dropped_chunk(
    image: SealedImage, tmp_path: Path, change: str
) -> None:
    path = image.blob(image.manifest.layers[0])
    data = path.read_bytes()
    end = image.extents(0)[-1]
    changed = {
        "truncated": data[:-1],
        "extended": data + b"x",
        "dropped chunk": data[: end[0]],
    }[change]
    digest = image.put(changed)
    fields = {"digest": digest, "size": len(changed)}
    image.rewrite(lambda document: document["layers"][0].update(fields))
    with pytest.raises(IntegrityError, match="but its pieces"):
        image.open(tmp_path / "store")


def test_dropped_chunk_and_everything_public_made_to_fit(
    image: SealedImage, tmp_path: Path
) -> None:
    """Who cuts a blob can make leaves, root and count to fit, but not what the key opens."""
    from lamina.blob.leaf_table import ENTRY
    from lamina.blob.merkle import root_of

    extents = image.extents(0)
    cut = image.blob(image.manifest.layers[0]).read_bytes()[: extents[-1][0]]
    table = image.blob(image.manifest.layers[-2]).read_bytes()
    own, others = table[: (len(extents) - 1) * ENTRY.size], table[len(extents) * ENTRY.size :]
    root = root_of(leaf for _, leaf in ENTRY.iter_unpack(own))
    digests = image.put(cut), image.put(own + others)

    def edit(document: dict[str, list[dict[str, object]]]) -> None:
        notes = {"dev.lamina.sealed.pieces": str(len(extents) - 1)}
        notes["dev.lamina.sealed.root"] = root.hex()
        document["layers"][0].update(digest=digests[0], size=len(cut), annotations=notes)
        document["layers"][-2].update(digest=digests[1], size=len(own + others))

    image.rewrite(edit)
    with pytest.raises(IntegrityError, match="not those that its encrypted description names"):
        image.open(tmp_path / "store")


def test_images_of_before_containerd_are_read(image: SealedImage, tmp_path: Path) -> None:
    """Their layers had media types that containerd does not count as layers."""
    old = "application/vnd.lamina.sealed."

    def edit(document: dict[str, list[dict[str, str]]]) -> None:
        for layer in document["layers"][:-1]:
            assert layer["mediaType"].startswith("application/vnd.oci.image.layer.lamina.sealed.")
            layer["mediaType"] = old + layer["mediaType"].split(".sealed.")[1]

    image.rewrite(edit)
    assert image.manifest.layers[0].media_type == f"{old}blob.v1"
    assert image.manifest.layers[-2].media_type == f"{old}leaves.v1"
    with closing(image.open(tmp_path / "store")) as opened:
        read_everything(opened)


def test_rollback_to_an_older_signed_image(
    registry: RegistryServer, source: str, keys: Keys, tmp_path: Path
) -> None:
    reference = registry.reference("sealed/rollback:1")
    seal(source, reference)
    older = sign(reference, 7, 1)
    seal(source, reference)
    sign(reference, 7, 2)
    with open_repository(parse_reference(reference), write=True) as repository:
        _, data = repository.manifest(older)
    policy = policy_file(tmp_path, 7, release=2)

    def read(store: str) -> int:
        found = open_image(
            reference, store=tmp_path / store, decryption_keys=[keys.private], policy=policy
        )
        with closing(found) as image:
            return image.stat(FILE).size

    assert read("a") == 40_000
    with open_repository(parse_reference(reference), write=True) as repository:
        repository.push_manifest("1", m.OCI_MANIFEST, data)
    with pytest.raises(TrustError, match="it is for release 1, older than 2"):
        read("b")


class _OldCache(RangeSource):
    """A peer with the ciphertext of an older image under the name of the newer."""

    name = "an old cache"

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.asked = 0

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        self.asked += 1
        return self.blobs[blob_id][offset : offset + size_bytes]


def test_replay_of_an_old_cache(image: SealedImage, source: str, tmp_path: Path) -> None:
    from tests.support.opening import open_image

    seal(source, f"oci:{tmp_path}/old:sealed")
    old = SealedImage(tmp_path / "old", image.keys)
    pairs = zip(image.manifest.layers[:2], old.manifest.layers[:2], strict=True)
    cache = _OldCache({new.hex: old.blob(layer).read_bytes() for new, layer in pairs})
    store, keys = tmp_path / "store", image.keys.private
    opened = open_image(image.reference, store=store, sources=[cache], decryption_keys=keys)
    with closing(opened):
        # The right bytes come from the image's own place; those of the cache are refused.
        assert opened.pread(opened.stat(FILE), 0, 40_000) == LAYERS[0][FILE[1:]]
        assert cache.asked
    for layer in image.manifest.layers[:2]:
        image.blob(layer).write_bytes(cache.blobs[layer.hex])
    with closing(image.open(tmp_path / "other")) as opened, pytest.raises(IntegrityError):
        opened.pread(opened.stat(OTHER_FILE), 0, 20_000)


def test_forge_what_the_store_has_ready(image: SealedImage, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o777)
    store.chmod(0o777)
    with pytest.raises(StoreError, match="cannot be trusted"):
        image.open(store)


def test_file_changed_between_check_and_use(image: SealedImage, tmp_path: Path) -> None:
    with closing(image.open(tmp_path / "store")) as opened:
        before = opened.pread(opened.stat(FILE), 0, 40_000)
        for layer in image.manifest.layers:
            image.blob(layer).write_bytes(bytes(layer.size))
        assert opened.pread(opened.stat(FILE), 0, 40_000) == before == LAYERS[0][FILE[1:]]


def test_key_reuse_and_equality_leak(image: SealedImage, source: str, tmp_path: Path) -> None:
    """The same source sealed twice, and equal pieces in two blobs, have no ciphertext in common."""
    seal(source, f"oci:{tmp_path}/again:sealed")
    again = SealedImage(tmp_path / "again", image.keys)
    seen: set[bytes] = set()
    count = 0
    for sealed in (image, again):
        for number, layer in enumerate(sealed.manifest.layers[:2]):
            data = sealed.blob(layer).read_bytes()
            for start, _ in sealed.extents(number):
                seen.add(data[start : start + 16])
                count += 1
    assert len(seen) == count
    assert count > 40


@pytest.mark.parametrize("change", ["suite", "media type", "cipher"])
def test_algorithm_downgrade(image: SealedImage, tmp_path: Path, change: str) -> None:
    def edit(document: dict[str, list[dict[str, object]]]) -> None:
        last = document["layers"][-1]
        annotations = last["annotations"]
        assert isinstance(annotations, dict)
        if change == "suite":
            annotations["dev.lamina.sealed.suite"] = "cc-rafs/0"
        elif change == "media type":
            last["mediaType"] = m.OCI_LAYER_GZIP
        else:
            import base64

            public = {"cipher": "AES_256_CTR", "hmac": "", "cipheroptions": {}}
            text = base64.b64encode(json.dumps(public).encode()).decode()
            annotations["org.opencontainers.image.enc.pubopts"] = text

    image.rewrite(edit)
    with pytest.raises((UnsupportedError, FormatError)):
        image.open(tmp_path / "store")


def test_plaintext_on_storage_that_others_see(image: SealedImage, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with closing(image.open(store)) as opened:
        opened.pread(opened.stat(FILE), 0, 40_000)
    folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
    files = [path for path in store.rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in folders), folders
    assert all(path.stat().st_mode & 0o077 == 0 for path in files), files
    # The keys of the blobs are nowhere in it.
    assert not any(b'"suite":"cc-rafs/1","blobs"' in path.read_bytes() for path in files)


@pytest.mark.parametrize("filesystem", ["virtiofs", "9p", "nfs4", "cifs"])
def test_make_the_guest_write_plaintext_to_host_visible_storage(
    image: SealedImage,
    source: str,
    tmp_path: Path,
    filesystem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host mounts a folder that it shares where the store is to be."""
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    device = f"{os.major(store.stat().st_dev)}:{os.minor(store.stat().st_dev)}"
    line = f"41 28 {device} / {store} rw,relatime - {filesystem} share rw\n"
    shared = list(parse_mount_table(line.encode()))
    monkeypatch.setattr("lamina.linux.mount_table.read_mount_table", lambda: shared)
    with pytest.raises(StoreError, match=f"is on {filesystem}, which its server reads too"):
        image.open(store)
    # Nothing of the metadata was decrypted into it.
    assert not any(b"secret-plans" in data for data in pushed(store))
    monkeypatch.setattr(
        "lamina.linux.mount_table.read_mount_table",
        lambda: [entry._replace(device="0:0") for entry in shared],
    )
    image.open(store).close()


def test_sealed_images_share_no_chunks_on_a_node(
    image: SealedImage, source: str, tmp_path: Path
) -> None:
    """Who reads one image must not learn by speed what another one has."""
    seal(source, f"oci:{tmp_path}/again:sealed")
    again = SealedImage(tmp_path / "again", image.keys)
    store = tmp_path / "store"
    with closing(image.open(store)) as first:
        first.pread(first.stat(FILE), 0, 40_000)
    with closing(again.open(store)) as second:
        second.pread(second.stat(FILE), 0, 40_000)
        assert second.statistics.copied_bytes == 0
        assert second.statistics.fetched_bytes > 40_000


def test_size_leak(source: str, keys: Keys, tmp_path: Path) -> None:
    seal(source, f"oci:{tmp_path}/padded:sealed", padding=Padding.PADME)
    image = SealedImage(tmp_path / "padded", keys)
    for number in range(2):
        for _, size in image.extents(number):
            assert Padding.PADME.padded(size - TAG_BYTES) == size - TAG_BYTES
    with closing(image.open(tmp_path / "store")) as opened:
        assert opened.pread(opened.stat(FILE), 0, 40_000) == LAYERS[0][FILE[1:]]


def test_the_policy_is_asked_before_anything_is_read(
    registry: RegistryServer, source: str, keys: Keys, tmp_path: Path, command: Callable[..., int]
) -> None:
    reference = registry.reference("sealed/policy:1")
    seal(source, reference)
    policy = policy_file(tmp_path, 7)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    words = ["--store", str(tmp_path / "store"), "--decryption-key", keys.private]
    trust = [*words, "--policy", policy]
    for verb in (["mount", *trust, reference, str(mountpoint)], ["cat", *trust, reference, FILE]):
        assert command(*verb) == TrustError.exit_code
    assert not os.path.ismount(mountpoint)
    sign(reference, 7, 3)
    assert command("ls", "-q", *trust, reference) == 0


def test_an_index_of_sealed_images_is_sealed(source: str, keys: Keys, tmp_path: Path) -> None:
    from tests.unit.registry.images import make_index

    make_index(tmp_path / "multi")
    reference = f"oci:{tmp_path}/sealed:multi"
    seal(f"oci:{tmp_path}/multi:multi", reference)
    for platform in ("linux/amd64", "linux/arm64"):
        store = tmp_path / platform.replace("/", "-")
        found = open_image(
            reference, store=store, decryption_keys=[keys.private], platform=platform
        )
        with closing(found) as opened:
            assert opened.stat("/a").size == 5000

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.asked_once import asked_once
from tests.support.native_images import (
    BuiltImage,
    MemorySource,
    build_image,
    image_files,
    metadata_layer,
    open_bootstrap,
    push_image,
    some_bytes,
)
from tests.support.opening import open_image
from tests.support.records import framed
from tests.support.serving import FolderSource

import lamina
from lamina.blob.table import ChunkTable
from lamina.content.blob_set import BlobSet, check_supported
from lamina.erofs.layout import BlobFeature
from lamina.erofs.reader import Bootstrap
from lamina.errors import (
    FetchError,
    FormatError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from lamina.oci.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    Manifest,
    Platform,
    describe,
    encode,
)
from lamina.oci.reference import parse_reference
from lamina.opening import open_image as open_module
from lamina.opening.metadata_layer import chunk_sets, unpack_metadata_layer
from lamina.registry.open_repository import open_repository
from lamina.store.node import NodeStore
from lamina.store.records import IMAGE, MetadataFiles, decode_record, encode_record

FILES = {b"etc/one": some_bytes(9000, 1), b"etc/two": b"two", b"three": some_bytes(500, 3)}


class Watched:
    """A repository that counts what it is asked for, and may be told to refuse."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.asked: list[str] = []
        self.refuse = False

    def __getattr__(self, name: str) -> object:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: object, **kwargs: object) -> object:
            if name not in ("close", "__exit__"):
                self.asked.append(name)
                if self.refuse:
                    raise FetchError("no network")
            return found(*args, **kwargs)

        return call

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner.close()  # type: ignore[attr-defined]


@pytest.fixture
def built() -> BuiltImage:
    return build_image(FILES, pack_size=4096)


@pytest.fixture
def layout(tmp_path: Path, built: BuiltImage) -> Path:
    push_image(built, tmp_path / "layout")
    return tmp_path / "layout"


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watched]]:
    made: list[Watched] = []

    def opening(*args: object, **kwargs: object) -> Watched:
        made.append(Watched(open_repository(*args, **kwargs)))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(open_module, "open_repository", opening)
    yield made


def test_an_image_opens_and_reads(layout: Path, tmp_path: Path) -> None:
    with open_image(f"oci:{layout}:latest", store=tmp_path / "store") as image:
        for path, content in FILES.items():
            with image.open(path) as file:
                assert file.read() == content
        assert image.config.config.cmd == ("/bin/true",)
        assert image.manifest is not None
        assert len(image.manifest.layers) == 2
        assert image.bootstrap_path.is_relative_to(tmp_path / "store")
        assert image.origin is not None
        assert image.origin.reference is not None
        assert image.origin.reference.digest is not None
        assert image.statistics.requests > 0
    image.close()


def test_lamina_open_uses_the_default_store(layout: Path) -> None:
    with lamina.open(f"oci:{layout}:latest") as image:
        assert image.open("etc/two").read() == b"two"


def test_opening_fetches_no_content(layout: Path, watched: list[Watched], tmp_path: Path) -> None:
    with open_image(f"oci:{layout}:latest", store=tmp_path / "store") as image:
        assert [path for path, _ in image.walk()][1:] == [
            b"/etc",
            b"/etc/one",
            b"/etc/two",
            b"/three",
        ]
        (repository,) = watched
        assert "read_into" not in repository.asked
        assert isinstance(image.blobs, BlobSet)
        assert image.blobs.opened == []


def test_openings_ask_once_what_the_tag_is(
    layout: Path, watched: list[Watched], tmp_path: Path
) -> None:
    for _ in range(2):
        with open_image(f"oci:{layout}:latest", store=tmp_path / "store") as image:
            assert image.open("etc/two").read() == b"two"
    assert [name for name in watched[0].asked if name != "open_blob"][:2] == [
        "manifest",
        "read_into",
    ]
    assert watched[1].asked == ["manifest"]


def test_by_digest_nothing_is_asked(layout: Path, watched: list[Watched], tmp_path: Path) -> None:
    with open_image(f"oci:{layout}:latest", store=tmp_path / "store") as image:
        assert image.origin is not None
        reference = image.origin.reference
        assert reference is not None
        image.open("etc/one").read()
    with open_image(reference, store=tmp_path / "store") as image:
        watched[1].refuse = True
        assert image.open("etc/one").read() == FILES[b"etc/one"]
    assert watched[1].asked == []


@pytest.mark.parametrize("with_meta", [True, False])
def test_the_chunk_table_may_be_missing(
    built: BuiltImage, tmp_path: Path, watched: list[Watched], with_meta: bool
) -> None:
    push_image(built, tmp_path / "l", with_meta=with_meta)
    for _ in range(2):
        with open_image(f"oci:{tmp_path}/l:latest", store=tmp_path / "store") as image:
            assert image.open("etc/one").read() == FILES[b"etc/one"]
    ranges = [repository.asked.count("read_into") for repository in watched]
    assert ranges == [1 if with_meta else 2, 0], "it is fetched from the blob, once"


def test_a_wrong_chunk_table_is_forgotten(
    built: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The whole table parses, and says that the first piece is stored elsewhere.
    wrong = bytearray(built.meta)
    wrong[8] ^= 1
    push_image(built, tmp_path / "l", with_meta=False)
    where = f"oci:{tmp_path}/l:latest"
    with monkeypatch.context() as first:
        read = ChunkTable.from_meta
        first.setattr(ChunkTable, "from_stored", lambda _, entry: read(bytes(wrong), entry))
        with open_image(where, store=tmp_path / "store") as image, pytest.raises(IntegrityError):
            image.open("etc/one").read()
    for _ in range(2):
        with open_image(where, store=tmp_path / "store") as image:
            assert image.open("etc/one").read() == FILES[b"etc/one"]


def test_a_chunk_table_that_came_with_the_image_is_not_forgotten(
    built: BuiltImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_image(built, tmp_path / "l", with_meta=True)
    where, store = f"oci:{tmp_path}/l:latest", tmp_path / "store"
    (blob,) = (tmp_path / "l").glob(f"blobs/sha256/{built.blob_id}")
    right = blob.read_bytes()
    blob.write_bytes(bytes(len(right)))
    with open_image(where, store=store) as image, pytest.raises(IntegrityError):
        image.open("etc/one").read()
    blob.write_bytes(right)
    monkeypatch.setattr(ChunkTable, "from_stored", None)
    with open_image(where, store=store) as image:
        assert image.open("etc/one").read() == FILES[b"etc/one"]


def test_images_with_one_blob_share_its_cache_file(built: BuiltImage, tmp_path: Path) -> None:
    push_image(built, tmp_path / "a", with_meta=True)
    push_image(built, tmp_path / "b", with_meta=False)
    paths = set()
    for name in ("a", "b"):
        with open_image(f"oci:{tmp_path}/{name}:latest", store=tmp_path / "store") as image:
            assert image.open("etc/one").read() == FILES[b"etc/one"]
            paths.add(image.blobs[0].path)
    assert len(paths) == 1


def test_an_image_cannot_poison_the_blob_of_another(built: BuiltImage, tmp_path: Path) -> None:
    """An image that claims the same blob id with digests of its own gets a file of its own."""
    forged_files = {path: bytes(len(content)) for path, content in FILES.items()}
    forged = build_image(forged_files, pack_size=4096)
    boot = forged.bootstrap.replace(forged.blob_id.encode(), built.blob_id.encode())
    evil = BuiltImage(boot, built.blob_id, forged.blob, forged.meta, forged_files)
    source = MemorySource(evil)
    path = image_files(tmp_path / "evil", evil)
    with open_bootstrap(path, source, store=tmp_path / "store") as image:
        assert image.open("etc/one").read() == bytes(9000)
    push_image(built, tmp_path / "l")
    with open_image(f"oci:{tmp_path}/l:latest", store=tmp_path / "store") as image:
        assert image.open("etc/one").read() == FILES[b"etc/one"]


def test_a_bootstrap_file_with_a_folder_of_blobs(built: BuiltImage, tmp_path: Path) -> None:
    path = image_files(tmp_path / "image", built)
    source = FolderSource(path.parent)
    with open_bootstrap(path, source, store=tmp_path / "store") as image:
        assert image.open("etc/one").read() == FILES[b"etc/one"]
        assert image.bootstrap_path == path


@pytest.mark.parametrize("content", [None, b"", b"x" * 10, bytes(8192)])
def test_what_is_no_bootstrap(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "boot"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NotFoundError if content is None else FormatError):
        open_bootstrap(path, MemorySource(), store=tmp_path / "store")


def push_documents(layout: Path, *documents: tuple[str, bytes, str | None]) -> None:
    with open_repository(parse_reference(f"oci:{layout}:latest"), write=True) as repository:
        for media_type, data, tag in documents:
            repository.push_manifest(tag, media_type, data)


def push_blobs(layout: Path, *blobs: tuple[Descriptor, bytes]) -> None:
    with open_repository(parse_reference(f"oci:{layout}:latest"), write=True) as repository:
        for descriptor, data in blobs:
            repository.push_blob(descriptor, io.BytesIO(data))


def test_an_ordinary_image_is_refused_with_a_hint(tmp_path: Path) -> None:
    config, layer = b'{"architecture":"amd64","os":"linux"}', b"layer"
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=describe(OCI_CONFIG, config),
        layers=(describe(OCI_LAYER_GZIP, layer),),
    )
    push_blobs(tmp_path / "l", (manifest.config, config), (manifest.layers[0], layer))
    push_documents(tmp_path / "l", (OCI_MANIFEST, encode(manifest), "latest"))
    with pytest.raises(UnsupportedError, match="ordinary OCI image") as caught:
        open_image(f"oci:{tmp_path}/l:latest", store=tmp_path / "store")
    assert "lamina convert" in (caught.value.hint or "")


def test_the_platform_is_chosen_from_an_index(built: BuiltImage, tmp_path: Path) -> None:
    other = build_image({b"arm": b"arm"})
    layout = tmp_path / "l"
    entries = []
    for image, architecture in ((built, "amd64"), (other, "arm64")):
        found = push_image(image, layout, tag=architecture)
        entries.append(
            Descriptor(
                media_type=OCI_MANIFEST,
                digest=found.digest,
                size=found.size,
                platform=Platform(os="linux", architecture=architecture),
            )
        )
    index = ImageIndex(schema_version=2, media_type=OCI_INDEX, manifests=tuple(entries))
    push_documents(layout, (OCI_INDEX, encode(index), "latest"))
    for platform, path in (("linux/amd64", b"/etc"), ("linux/arm64", b"/arm")):
        with open_image(
            f"oci:{layout}:latest", store=tmp_path / "store", platform=platform
        ) as image:
            assert path in [found for found, _ in image.walk()]
    with pytest.raises(NotFoundError, match="riscv64") as caught:
        open_image(f"oci:{layout}:latest", store=tmp_path / "store", platform="linux/riscv64")
    assert "amd64" in (caught.value.hint or "")


def test_an_image_of_one_platform_is_not_taken_for_another(layout: Path, tmp_path: Path) -> None:
    reference, store = f"oci:{layout}:latest", tmp_path / "store"
    for platform in (None, "linux/amd64", "linux/amd64/v3"):
        open_image(reference, store=store, platform=platform).close()
    with pytest.raises(NotFoundError, match="no manifest for linux/arm64") as caught:
        open_image(reference, store=store, platform="linux/arm64")
    assert caught.value.hint == "it is a single image for linux/amd64"


def test_references_that_are_wrong_or_lead_nowhere(layout: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        open_image("NOT A REFERENCE", store=tmp_path / "store")
    with pytest.raises(NotFoundError):
        open_image(f"oci:{tmp_path}/absent:latest", store=tmp_path / "store")
    with pytest.raises(NotFoundError):
        open_image(f"oci:{layout}:absent", store=tmp_path / "store")


def damage_blob(layout: Path, digest: str, position: int) -> None:
    path = layout / "blobs" / "sha256" / digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("where", [0.05, 0.5, 0.99])
def test_a_damaged_metadata_layer_is_refused_and_nothing_is_recorded(
    layout: Path, tmp_path: Path, where: float
) -> None:
    manifest = read_manifest(layout)
    last = manifest["layers"][-1]
    damage_blob(layout, last["digest"], int(last["size"] * where))
    with pytest.raises((IntegrityError, FormatError)):
        open_image(f"oci:{layout}:latest", store=tmp_path / "store")
    assert not (tmp_path / "store" / "records").exists()


def read_manifest(layout: Path) -> dict[str, list[dict[str, object]]]:
    index = json.loads((layout / "index.json").read_bytes())
    digest = index["manifests"][0]["digest"].removeprefix("sha256:")
    found = json.loads((layout / "blobs" / "sha256" / digest).read_bytes())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("part", ["config", "manifest"])
def test_a_damaged_document_is_refused(layout: Path, tmp_path: Path, part: str) -> None:
    index = json.loads((layout / "index.json").read_bytes())
    digest = index["manifests"][0]["digest"]
    if part == "config":
        digest = read_manifest(layout)["config"]["digest"]  # type: ignore[call-overload]
    damage_blob(layout, digest, 3)
    with pytest.raises((IntegrityError, FormatError)):
        open_image(f"oci:{layout}:latest", store=tmp_path / "store")


def test_a_flipped_byte_in_the_blob_is_an_integrity_error(
    built: BuiltImage, layout: Path, tmp_path: Path
) -> None:
    offset, size = built.pieces[0]
    damage_blob(layout, f"sha256:{built.blob_id}", offset + size // 2)
    with open_image(f"oci:{layout}:latest", store=tmp_path / "store") as image:
        with pytest.raises(IntegrityError, match=built.blob_id):
            image.open("etc/one").read()
        assert image.open("three").read() == FILES[b"three"]


def test_a_store_that_lost_its_files_fetches_them_again(layout: Path, tmp_path: Path) -> None:
    reference = f"oci:{layout}:latest"
    open_image(reference, store=tmp_path / "store").close()
    shutil.rmtree(tmp_path / "store" / "metadata")
    with open_image(reference, store=tmp_path / "store") as image:
        assert image.open("etc/two").read() == b"two"


def test_a_record_of_another_version_is_made_anew(layout: Path, tmp_path: Path) -> None:
    reference = f"oci:{layout}:latest"
    open_image(reference, store=tmp_path / "store").close()
    node = NodeStore(tmp_path / "store")
    (path,) = (tmp_path / "store" / "records" / "image").iterdir()
    digest = path.name.replace("-", ":")
    for content in (b"", b"[]", b"{}", b'{"version": 2}', b'{"version": 1}', b"\xff"):
        path.write_bytes(framed(content))
        assert node.records.read(IMAGE, digest) is None
        open_image(reference, store=node).close()
        assert node.records.read(IMAGE, digest) is not None


def test_after_closing_nothing_can_be_read(layout: Path, tmp_path: Path) -> None:
    image = open_image(f"oci:{layout}:latest", store=tmp_path / "store")
    file = image.open("/etc/one")
    stat = image.stat("/etc/one")
    image.close()
    image.close()
    for use in (
        lambda: image.blobs[0],
        lambda: image.stat("/etc"),
        lambda: image.open("/etc/one"),
        lambda: list(image.walk()),
        lambda: image.pread(stat, 0, 10),
        file.read,
    ):
        with pytest.raises(UsageError, match="the image is closed"):
            use()


def test_blobs_open_once_and_as_a_sequence(layout: Path, tmp_path: Path) -> None:
    with open_image(f"oci:{layout}:latest", store=tmp_path / "store") as image:
        assert len(image.blobs) == 1
        assert image.blobs[0] is image.blobs[-1]
        assert list(image.blobs) == image.blobs[:]
        with pytest.raises(IndexError):
            _ = image.blobs[1]


@pytest.mark.parametrize(
    "feature",
    [BlobFeature.ENCRYPTED, BlobFeature.TARFS, BlobFeature.EXTERNAL],
)
def test_kinds_of_blobs_that_cannot_be_read(built: BuiltImage, feature: BlobFeature) -> None:
    with Bootstrap(built.bootstrap) as bootstrap:
        entry = bootstrap.blobs[0]
        check_supported(entry)
        with pytest.raises(UnsupportedError, match=built.blob_id):
            check_supported(entry._replace(features=entry.features | feature))


def test_a_chunk_table_that_claims_too_much_is_not_fetched(
    built: BuiltImage, tmp_path: Path
) -> None:
    source = MemorySource(built)
    with Bootstrap(built.bootstrap) as bootstrap:
        entry = bootstrap.blobs[0]._replace(ci_compressed_size=1 << 60)
        files = MetadataFiles("", {}, chunk_sets(bootstrap))
        blobs = BlobSet(bootstrap, files, asked_once(source), NodeStore(tmp_path / "store"))
        with pytest.raises(FormatError, match="claims"):
            blobs.tables.load(entry)
        blobs.close()
    assert source.requests == []


def test_the_top_level_name_of_old_images(built: BuiltImage, tmp_path: Path) -> None:
    layer = metadata_layer(built, name="image.boot")
    node = NodeStore(tmp_path / "store")
    files = unpack_metadata_layer(io.BytesIO(layer), OCI_LAYER_GZIP, node)
    assert node.metadata(files.bootstrap) == built.bootstrap
    assert node.metadata(files.tables[built.blob_id]) == built.meta
    assert all(map(node.metadata_path, files.digests))
    assert decode_record(IMAGE, encode_record(files)) == files


def test_a_layer_without_a_bootstrap(built: BuiltImage, tmp_path: Path) -> None:
    layer = metadata_layer(built, name="image/other")
    with pytest.raises(FormatError, match=r"no image/image\.boot"):
        unpack_metadata_layer(io.BytesIO(layer), OCI_LAYER_GZIP, NodeStore(tmp_path / "store"))


def test_a_layer_that_is_cut_off(built: BuiltImage, tmp_path: Path) -> None:
    layer = metadata_layer(built)
    with pytest.raises(FormatError):
        unpack_metadata_layer(
            io.BytesIO(layer[: len(layer) // 2]), OCI_LAYER_GZIP, NodeStore(tmp_path / "store")
        )


def test_chunk_sets_do_not_depend_on_the_rest_of_the_image(built: BuiltImage) -> None:
    more = build_image(FILES | {b"zzz": some_bytes(6000, 8)}, pack_size=4096)
    same = build_image(FILES, nodes={}, pack_size=4096)
    sets = []
    for image in (built, same, more):
        with Bootstrap(image.bootstrap) as bootstrap:
            sets.append(chunk_sets(bootstrap)[image.blob_id])
    assert sets[0] == sets[1] != sets[2]

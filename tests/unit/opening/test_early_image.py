"""Images that are used before their metadata layer has come: right bytes, or wait, or an error."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from tests.support.early_images import EarlyImageFolder, make_early_image
from tests.support.sealed import make_source

from lamina.blob.start_artifact import FrameContent
from lamina.build.index import index_image
from lamina.build.start_profile import Profile, ProfileLine
from lamina.content import whole_image
from lamina.content.early_image import EarlyImage
from lamina.content.lazy_image import LazyImage
from lamina.erofs.layout import DIRENT
from lamina.erofs.reader import Bootstrap
from lamina.errors import FetchError, FormatError, IntegrityError, NotFoundError
from lamina.image.errors import UnusableIndexError
from lamina.oci.reference import parse_reference
from lamina.oci.start_manifest import StartRule
from lamina.opening.lazy_index import LazyIndex
from lamina.opening.open_image import open_image
from lamina.opening.request import request_of

PAGE = 4096


def noise(size: int, seed: int) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


FILES = {
    "bin/program": noise(900_000, 1),
    "etc/passwd": noise(700, 2),
    "many/+sub/file": noise(70_000, 3),
    **{f"many/{number:0100d}": b"%d" % number for number in range(300)},
}
FAR = f"/many/{150:0100d}"
"""Nothing that is profiled lies beside it."""

PROFILE = Profile(
    (
        ProfileLine(b"/bin/program", ((0, 3), (17, 18), (32, 90), (219, 220))),
        ProfileLine(b"/etc/passwd"),
    ),
    ("/bin/program",),
)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, what was asked for comes, and nothing else is asked for."""
    monkeypatch.setenv("LAMINA_START_WAIT_S", "100")
    monkeypatch.setattr(whole_image, "SETTLE_SHARE", 10.0)
    monkeypatch.setattr("lamina.opening.early_image.FIND_SHARE", 1.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> EarlyImageFolder:
    folder = tmp_path_factory.mktemp("image")
    image = make_early_image(folder, FILES)
    image.attach_profile(PROFILE, folder / "store")
    return image


def read_profile(image: LazyImage) -> None:
    for line in PROFILE.lines:
        data = FILES[line.path[1:].decode()]
        found = image.stat(line.path)
        for first, stop in line.spans or ((0, 1),):
            for start in range(first * PAGE, stop * PAGE, PAGE):
                assert image.pread(found, start, PAGE) == data[start : start + PAGE]


def read_all(image: LazyImage) -> None:
    for name, data in FILES.items():
        assert image.pread(image.stat(f"/{name}"), 0, len(data)) == data
    assert len(list(image.walk())) == len(FILES) + 5


def test_a_start_needs_no_metadata_layer(made: EarlyImageFolder, tmp_path: Path) -> None:
    layer = made.metadata_layer()
    hidden = layer.rename(layer.with_suffix(".away"))
    try:
        with made.open(tmp_path / "store") as image:
            assert image.is_early
            read_profile(image)
            assert image.config.config.cmd == ("/vault/start",)
            with pytest.raises(NotFoundError):
                image.stat(FAR)
            # Which is no reason to show less of what came.
            read_profile(image)
    finally:
        hidden.rename(layer)
    with made.open(tmp_path / "store") as image:
        assert image.is_early
        read_profile(image)
        assert image.is_early
        read_all(image)
        assert not image.is_early
        read_profile(image)
    with made.open(tmp_path / "store") as image:
        # It is in the store now.
        assert not image.is_early
        read_all(image)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> EarlyImageFolder:
    folder = tmp_path_factory.mktemp("indexed")
    reference = make_source(folder / "image", (FILES,))
    index_image(parse_reference(reference))
    image = EarlyImageFolder(reference, b"")
    image.attach_profile(PROFILE, folder / "store")
    return image


def test_an_index_is_not_waited_for(indexed: EarlyImageFolder, tmp_path: Path) -> None:
    copy = indexed.copied(tmp_path / "image")
    with copy.open(tmp_path / "other") as image:
        assert image.manifest is not None
        digest = image.manifest.layers[-1].digest
    layer = copy.folder / "blobs" / digest.replace(":", "/")
    hidden = layer.rename(layer.with_suffix(".away"))
    with copy.open(tmp_path / "store") as image:
        assert image.is_early
        read_profile(image)
        with pytest.raises(NotFoundError):
            image.stat(FAR)
        read_profile(image)
        # Nobody could know that it has to be made anew.
    request = msgspec.structs.replace(
        request_of(copy.reference, store=tmp_path / "s"), index="always"
    )
    with pytest.raises(UnusableIndexError):
        open_image(msgspec.structs.replace(request, start=StartRule()), early=True)
    hidden.rename(layer)
    with copy.open(tmp_path / "store") as image:
        assert image.is_early
        read_all(image)
        assert not image.is_early


def test_an_index_of_other_layers_is_not_used_early(
    indexed: EarlyImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(found: LazyIndex, bootstrap: Bootstrap) -> None:
        raise IntegrityError(f"{found.digest} has {len(bootstrap.blobs)} blobs of others")

    monkeypatch.setattr("lamina.opening.early_image.check_blobs", refuse)
    with indexed.open(tmp_path / "store") as image:
        assert not image.is_early
        read_all(image)


def test_whoever_does_not_ask_gets_the_whole(made: EarlyImageFolder, tmp_path: Path) -> None:
    for number, options in enumerate(({"early": False}, {"start": False})):
        with made.open(tmp_path / str(number), **options) as image:
            assert not image.is_early
            read_all(image)


def test_the_whole_is_opened_when_the_start_is_over(
    made: EarlyImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_image, "SETTLE_SHARE", 0.0)
    with made.open(tmp_path / "store") as image:
        thread = image._whole._later  # type: ignore[attr-defined]
        thread.join(60)
        assert not image.is_early
        read_all(image)


def test_whole_chunks_that_came_early_go_to_the_store(
    made: EarlyImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody opens the whole but this test.
    monkeypatch.setattr(whole_image, "SETTLE_SHARE", 1e6)
    with made.open(tmp_path / "store") as image:
        assert isinstance(image, EarlyImage)
        read_profile(image)
        pages = image.start_pages
        assert pages is not None
        assert pages.wait_over(60)
        before = pages.held_bytes
        image.stat(FAR)
        opener = image._whole._opener
        assert opener is not None
        opener.join(60)
        assert pages.held_bytes < before
        chunks = list(image.chunks("/bin/program"))
        here = [image.blobs[c.blob_index].is_ready(c.blob_offset, c.size_bytes) for c in chunks]
        # Pages 32 to 90 of chunks of 32 pages.
        assert here == [number == 1 for number in range(len(chunks))]
        read_profile(image)
        assert image.statistics.requests == 0
        read_all(image)


def test_a_metadata_layer_that_comes_damaged_is_fetched_again(
    made: EarlyImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which says nothing of the image."""
    monkeypatch.setattr(whole_image, "RETRY_S", 0.0)
    copy = made.copied(tmp_path / "image")
    layer = copy.metadata_layer()
    right = layer.read_bytes()
    data = bytearray(right)
    data[len(data) // 2] ^= 1
    layer.write_bytes(data)
    with copy.open(tmp_path / "store") as image:
        read_profile(image)
        for _ in range(2):
            with pytest.raises(FetchError, match="comes damaged"):
                image.stat(FAR)
        read_profile(image)
        layer.write_bytes(right)
        read_all(image)


def test_a_root_of_another_bootstrap_proves_nothing(tmp_path: Path) -> None:
    """The manifest says one thing, and its metadata layer has another."""
    other = make_early_image(tmp_path / "other", {**FILES, "etc/passwd": noise(700, 9)})
    root = blake3(other.bootstrap).digest()
    claimed = make_early_image(tmp_path / "claimed", FILES, claimed=root)
    pages = range(len(other.bootstrap) // PAGE)
    # Pages of the bootstrap that is there are not proven, so the ordinary path is taken.
    own = claimed.copied(tmp_path / "own")
    own.attach_pages(pages)
    with own.open(tmp_path / "a") as opened:
        assert not opened.is_early
        read_all(opened)
    # Those of the other one are, until the metadata layer comes.
    EarlyImageFolder(claimed.reference, other.bootstrap).attach_pages(pages)
    with claimed.open(tmp_path / "b") as opened:
        assert opened.is_early
        opened.stat("/etc/passwd")
        with pytest.raises(IntegrityError, match="another bootstrap"):
            opened.pread(opened.stat("/etc/passwd"), 0, 10)
        with pytest.raises(IntegrityError):
            opened.stat("/etc/passwd")


def lying(frame: FrameContent) -> FrameContent:
    return frame._replace(data=frame.data[:-1] + bytes([frame.data[-1] ^ 1]))


def forged(frame: FrameContent) -> FrameContent:
    return frame._replace(siblings=noise(len(frame.siblings), 5))


def moved(frame: FrameContent) -> FrameContent:
    parts = tuple(part._replace(first=part.first + 1) for part in frame.pages)
    return frame._replace(pages=parts)


def behind_the_end(frame: FrameContent) -> FrameContent:
    return frame._replace(pages=(frame.pages[0]._replace(first=1 << 20), *frame.pages[1:])[:1])


@pytest.mark.parametrize("change", [lying, forged, moved, behind_the_end])
def test_wrong_pages_are_passed_over(
    tmp_path: Path, change: Callable[[FrameContent], FrameContent]
) -> None:
    image = make_early_image(tmp_path, FILES)
    last = len(image.bootstrap) // PAGE
    image.attach_pages([*range(last - 4), last - 2], change)
    with image.open(tmp_path / "store") as opened:
        assert not opened.is_early
        read_all(opened)


def test_pages_without_the_first_do_no_harm(made: EarlyImageFolder, tmp_path: Path) -> None:
    """Anybody may attach them: they keep nobody from opening the image."""
    with Bootstrap(made.bootstrap) as sound:
        table = sound.header.extended
    image = make_early_image(tmp_path, FILES)
    every = set(range(len(image.bootstrap) // PAGE))
    for missing in (0, table.blob_table_offset // PAGE):
        copy = image.copied(tmp_path / f"without{missing}")
        copy.attach_pages(every - {missing})
        with copy.open(tmp_path / f"store{missing}") as opened:
            assert not opened.is_early
            read_all(opened)


def test_any_pages_will_do(made: EarlyImageFolder, tmp_path: Path) -> None:
    image = make_early_image(tmp_path, FILES)
    chance = random.Random(3)
    pages = len(image.bootstrap) // PAGE
    early = 0
    for number in range(12):
        copy = image.copied(tmp_path / f"image{number}")
        copy.attach_pages({0, 1, *(page for page in range(pages) if chance.random() < 0.6)})
        with copy.open(tmp_path / str(number)) as opened:
            early += opened.is_early
            read_all(opened)
    assert early


def cyclic(bootstrap: bytearray) -> None:
    """Have ``/many/+sub`` lead to ``/many``."""
    with Bootstrap(bytes(bootstrap)) as sound:
        nid = sound.lookup(sound.inode(sound.root_nid), b"many")
        assert nid is not None
        many = sound.inode(nid)
        names = [entry.name for entry in sound.entries(many)]
        place = sound.data_extent(many, 0, PAGE)[0] + names.index(b"+sub") * DIRENT.size
        offset = DIRENT.unpack_from(bootstrap, place)[1]
    DIRENT.pack_into(bootstrap, place, nid, offset, 2)


def page_with(bootstrap: bytes, folder: bytes) -> int:
    """The page with the first names of a folder."""
    with Bootstrap(bootstrap) as sound:
        nid = sound.lookup(sound.inode(sound.root_nid), folder)
        assert nid is not None
        return sound.data_extent(sound.inode(nid), 0, PAGE)[0] // PAGE


def test_a_tree_with_a_cycle_is_an_error_as_soon_as_it_is_seen(tmp_path: Path) -> None:
    image = make_early_image(tmp_path, FILES, cyclic)
    every = set(range(len(image.bootstrap) // PAGE))
    seen = image.copied(tmp_path / "seen")
    seen.attach_pages(every)
    with pytest.raises(FormatError, match="once more"):
        seen.open(tmp_path / "a")
    # Where nobody sees it at first, it is found before anybody does.
    image.attach_pages(every - {page_with(image.bootstrap, b"many")})
    with image.open(tmp_path / "b") as opened:
        assert opened.is_early
        opened.stat("/etc/passwd")
        for _ in range(2):
            with pytest.raises(FormatError, match="once more"):
                opened.stat("/many/+sub/file")
        with pytest.raises(FormatError, match="once more"):
            opened.stat("/etc/passwd")
    with pytest.raises(FormatError, match="once more"):
        image.open(tmp_path / "c", early=False)

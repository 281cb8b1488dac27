"""The threat table as properties: whatever an attacker chooses, a reader of a sealed image gets the
right bytes or an error.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lamina.blob.leaf_table import ENTRY
from lamina.blob.merkle import leaf_hash, root_of
from lamina.content.lazy_image import LazyImage
from lamina.errors import Error, FormatError, IntegrityError, StoreError, TrustError
from lamina.oci.reference import parse_reference
from lamina.opening.rollback_protection import check_release
from lamina.store.node import NodeStore
from tests.support.opening import open_image
from tests.support.range_source import RangeSource
from tests.support.sealed import LAYERS, Keys, SealedImage, make_source, seal

CONTENTS = {f"/{name}": data for files in LAYERS for name, data in files.items()}
quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> SealedImage:
    folder = tmp_path_factory.mktemp("sealed")
    seal(make_source(folder / "plain"), f"oci:{folder}/layout:sealed")
    return SealedImage(folder / "layout", Keys.make(folder))


@contextmanager
def copy_of(original: SealedImage) -> Iterator[tuple[SealedImage, Path]]:
    """A copy to be damaged, and a path for a store."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(original.folder, f"{folder}/layout")
        yield SealedImage(Path(folder, "layout"), original.keys), Path(folder, "store")


def read_all(image: LazyImage) -> None:
    """Read every file.  Whatever is read is right, or this fails."""
    for path, content in CONTENTS.items():
        assert image.pread(image.stat(path), 0, len(content)) == content, path


@quick
@given(data=st.data(), change=st.integers(1, 255))
def test_tamper_with_any_byte(original: SealedImage, data: st.DataObject, change: int) -> None:
    manifest = original.manifest
    layer = data.draw(st.sampled_from((*manifest.layers, manifest.config)))
    offset = data.draw(st.integers(0, layer.size - 1))
    with copy_of(original) as (image, store):
        changed = bytearray(image.blob(layer).read_bytes())
        changed[offset] ^= change
        image.blob(layer).write_bytes(changed)
        with pytest.raises(IntegrityError), closing(image.open(store)) as opened:
            read_all(opened)


@quick
@given(data=st.data())
def test_swap_of_any_pieces_even_with_leaves_and_root_made_to_fit(
    original: SealedImage, data: st.DataObject
) -> None:
    """Any two pieces of a blob change places; the second time their leaves, the root and all that
    is public are made to fit, which only an unsigned manifest lets anybody do.
    """
    number = data.draw(st.integers(0, 1))
    extents = original.extents(number)
    one, other = sorted(data.draw(st.permutations(range(len(extents))))[:2])
    with copy_of(original) as (image, store):
        path = image.blob(image.manifest.layers[number])
        stored = path.read_bytes()
        pieces = [stored[start : start + size] for start, size in extents]
        pieces[one], pieces[other] = pieces[other], pieces[one]
        path.write_bytes(b"".join(pieces))
        with pytest.raises(IntegrityError), closing(image.open(store)) as opened:
            read_all(opened)
        _publish(image, number, pieces)
        with pytest.raises(IntegrityError, match="not those that its encrypted description names"):
            image.open(store)


def _publish(image: SealedImage, number: int, pieces: Sequence[bytes]) -> None:
    """Replace a data blob, and make leaf table, root and digests fit."""
    leaves = [leaf_hash(index, piece) for index, piece in enumerate(pieces)]
    own = b"".join(ENTRY.pack(len(piece), leaf) for piece, leaf in zip(pieces, leaves, strict=True))
    counts = [len(image.extents(each)) * ENTRY.size for each in range(2)]
    table = image.blob(image.manifest.layers[-2]).read_bytes()
    parts = [table[: counts[0]], table[counts[0] :]]
    parts[number] = own
    blob = b"".join(pieces)
    digests = image.put(blob), image.put(b"".join(parts))

    def edit(document: dict[str, list[dict[str, object]]]) -> None:
        notes = {
            "dev.lamina.sealed.pieces": str(len(pieces)),
            "dev.lamina.sealed.root": root_of(leaves).hex(),
        }
        document["layers"][number].update(digest=digests[0], size=len(blob), annotations=notes)
        document["layers"][-2].update(digest=digests[1], size=sum(map(len, parts)))

    image.rewrite(edit)


@quick
@given(data=st.data())
def test_truncation_or_extension_by_any_length(original: SealedImage, data: st.DataObject) -> None:
    """Of any layer, with its digest and size in the manifest made to fit."""
    layers = original.manifest.layers
    number = data.draw(st.integers(0, len(layers) - 1))
    size = layers[number].size
    length = data.draw(st.integers(0, size + 5000))
    assume(length != size)
    with copy_of(original) as (image, store):
        changed = image.blob(layers[number]).read_bytes()[:length].ljust(length, b"x")
        digest = image.put(changed)
        fields = {"digest": digest, "size": length}
        image.rewrite(lambda manifest: manifest["layers"][number].update(fields))
        with pytest.raises((IntegrityError, FormatError)):
            image.open(store)


@quick
@given(data=st.data())
def test_any_pieces_dropped(original: SealedImage, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, 1))
    extents = original.extents(number)
    keep = data.draw(st.sets(st.integers(0, len(extents) - 1), min_size=1))
    assume(len(keep) < len(extents))
    with copy_of(original) as (image, store):
        stored = image.blob(image.manifest.layers[number]).read_bytes()
        _publish(image, number, [stored[s : s + n] for s, n in (extents[i] for i in sorted(keep))])
        with pytest.raises(IntegrityError, match="not those that its encrypted description names"):
            image.open(store)


@given(releases=st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=8))
def test_rollback_to_any_older_release(releases: list[int | None]) -> None:
    """Of all images that come by under one name, none is older than one that was taken."""
    name = parse_reference("docker://registry.example/app:stable")
    highest = -1
    with tempfile.TemporaryDirectory() as folder:
        store = NodeStore(Path(folder))
        for release in releases:
            stated = -1 if release is None else release
            if stated < highest:
                with pytest.raises(TrustError, match=f"release {highest} was used"):
                    check_release(store, name, release)
            else:
                check_release(store, name, release)
                highest = stated


@quick
@given(mode=st.integers(0, 0o777), place=st.sampled_from(["", "blobs", "metadata/sha256"]))
def test_bitmap_forging_needs_a_store_that_is_refused(mode: int, place: str) -> None:
    """What says that pieces are here is believed from a store that nobody else can write to."""
    with tempfile.TemporaryDirectory() as folder:
        NodeStore(Path(folder, "store"))
        (Path(folder, "store") / place).chmod(mode | 0o700)
        if mode & 0o022:
            with pytest.raises(StoreError, match="cannot be trusted"):
                NodeStore(Path(folder, "store"))
        else:
            NodeStore(Path(folder, "store"))


class Cache(RangeSource):
    """A cache of ciphertext that chance, or somebody, writes to while it is read."""

    name = "a cache"

    def __init__(self, blobs: dict[str, bytes], answer: Callable[[bytes], bytes]) -> None:
        self.blobs = blobs
        self.answer = answer
        self.asked = 0

    def read_range(self, blob_id: str, offset: int, size_bytes: int) -> bytes:
        self.asked += 1
        return self.answer(self.blobs[blob_id][offset : offset + size_bytes])


def _garbage(right: bytes) -> bytes:
    return hashlib.shake_128(right).digest(len(right))


ANSWERS: dict[str, Callable[[bytes], bytes]] = {
    "right": lambda right: right,
    "a hole": lambda right: bytes(len(right)),
    "garbage": _garbage,
    "a flipped bit": lambda right: right[:-1] + bytes((right[-1] ^ 1,)),
    "less": lambda right: right[:-1],
    "more": lambda right: right + b"\0",
    "reversed": lambda right: right[::-1],
}


@quick
@given(chosen=st.lists(st.sampled_from(sorted(ANSWERS)), min_size=1, max_size=12))
def test_bitmap_forging_in_a_cache_of_ciphertext(original: SealedImage, chosen: list[str]) -> None:
    """A cache that claims to have pieces, and has not, is passed over."""
    answers = [ANSWERS[name] for name in chosen]
    layers = original.manifest.layers[:2]
    blobs = {layer.hex: original.blob(layer).read_bytes() for layer in layers}
    cache = Cache(blobs, lambda right: answers[cache.asked % len(answers)](right))
    keys = original.keys.private
    with tempfile.TemporaryDirectory() as folder:
        opened = open_image(original.reference, store=folder, sources=[cache], decryption_keys=keys)
        with closing(opened):
            read_all(opened)
    assert cache.asked


@quick
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(CONTENTS)), st.sampled_from(sorted(ANSWERS))),
        min_size=1,
        max_size=8,
    )
)
def test_file_changed_between_check_and_use_at_any_time(
    original: SealedImage, steps: list[tuple[str, str]]
) -> None:
    """The image's own files change between reads: each read is right, or an error."""
    with copy_of(original) as (image, store):
        layers = image.manifest.layers
        before = {path: path.read_bytes() for path in map(image.blob, layers)}
        known: set[str] = set()
        with closing(image.open(store)) as opened:
            for path, change in steps:
                for stored, right in before.items():
                    stored.write_bytes(ANSWERS[change](right))
                content = CONTENTS[path]
                try:
                    got = opened.pread(opened.stat(path), 0, len(content))
                except Error:
                    assert path not in known, "what was verified is read from private memory"
                    assert change != "right"
                    continue
                assert got == content
                known.add(path)

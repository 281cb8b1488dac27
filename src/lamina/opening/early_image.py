"""Open an image by what its start artifact has of the bootstrap, before the metadata layer comes.

What was checked then, and what is not, docs/adr tells: pages are proven by the root in the
manifest, what a kernel can reach on them is checked, and all else waits for the metadata layer,
which is proven and checked as a whole as ever.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lamina.codec.digest import Digester, digest
from lamina.content.blob_set import check_supported
from lamina.content.early_image import EarlyBlobs, EarlyImage
from lamina.content.early_proof import early_chunks
from lamina.content.lazy_image import LazyImage, Origin
from lamina.content.start_pages import longest_wait_s
from lamina.content.whole_image import WholeImage
from lamina.erofs.check_part import check_part
from lamina.erofs.partial import NotHereError, PartialBootstrap
from lamina.errors import FetchError, FormatError, IntegrityError
from lamina.oci.bootstrap_root import BootstrapRoot, bootstrap_root
from lamina.opening.lazy_index import check_blobs
from lamina.registry.resolve import load_config

if TYPE_CHECKING:
    from lamina.opening.manifest import FoundManifest
    from lamina.opening.place import Place
    from lamina.opening.start_stream import StartStream
    from lamina.opening.version import Version

LOG: Final = logging.getLogger("lamina")

FIND_SHARE: Final = 0.02
"""So long, of the time that a start is waited for, an artifact may take to be found whatever other
answers took: a tenth of a second.
"""

READ_BYTES: Final = 1 << 20

ANSWERS: Final = 4
"""Finding an artifact takes a few answers, of which one was just waited for."""


def open_early(
    place: Place,
    version: Version,
    found: FoundManifest,
    stream: StartStream,
    whole: Callable[[], LazyImage],
    resources: ExitStack,
) -> LazyImage | None:
    """Return an image that *whole* opens when more of it is needed than came early, and that owns
    *resources*; None if nothing came, or what came is not all that is needed, or breaks a rule.

    Raises UnsupportedError for blobs that cannot be read.
    """
    root = bootstrap_root(found.manifest)
    assert root is not None
    begin_s = time.monotonic()
    config = load_config(found.image, place)
    longest_s = longest_wait_s() * FIND_SHARE + ANSWERS * (time.monotonic() - begin_s)
    bootstrap = _bootstrap(found, root, stream, longest_s)
    if bootstrap is None:
        return None

    def open_whole() -> LazyImage:
        image = _opened(whole, place, found)
        try:
            _check_root(image, root)
        except BaseException:
            image.close()
            raise
        image.blobs.expect(stream.pages)
        stream.bind(image.blobs)
        return image

    named = place.reference.with_version(tag=place.reference.tag, digest=found.digest)
    later = WholeImage(open_whole, stream.pages, str(named), afterwards=stream.keep)
    bootstrap.complete_by(later)
    blobs = EarlyBlobs(bootstrap, stream.pages, later, place.store.root / "blobs")
    accepted = version.reference if version.is_accepted else None
    origin = Origin(Path(os.devnull), named, found.manifest, config, accepted, note=version.note)
    image = EarlyImage(bootstrap, blobs, later, origin=origin, resources=resources.pop_all())
    stream.bind_early(early_chunks(bootstrap))
    image.close_with(stream)
    later.begin()
    return image


def _bootstrap(
    found: FoundManifest, root: BootstrapRoot, stream: StartStream, longest_s: float
) -> PartialBootstrap | None:
    pages = stream.metadata(longest_s)
    if not pages:
        return None
    try:
        bootstrap = PartialBootstrap(root.size_bytes, pages)
        check_part(bootstrap)
        if found.indexed is not None:
            check_blobs(found.indexed, bootstrap)
    except (NotHereError, FormatError, IntegrityError) as error:
        # Without the first pages everything looks wrong.  What is, the whole says as ever: nobody
        # who attaches pages to an image can keep it from being opened.
        LOG.debug("the metadata layer is waited for: %s", error)
        return None
    for entry in bootstrap.blobs:
        check_supported(entry)
    return bootstrap if bootstrap.blobs else None


def _opened(whole: Callable[[], LazyImage], place: Place, found: FoundManifest) -> LazyImage:
    """Return the whole image.  Raises what *whole* does if that is the image's fault, and
    FetchError if the metadata layer comes damaged, which says nothing of the image.
    """
    try:
        return whole()
    except (FormatError, IntegrityError) as error:
        LOG.info("the metadata are fetched again: %s", error)
    try:
        return whole()
    except (FormatError, IntegrityError) as error:
        try:
            with place.stream(found.manifest.layers[-1]) as stream:
                while stream.read(READ_BYTES):
                    pass
        except IntegrityError as damage:
            raise FetchError(f"the metadata layer comes damaged: {damage}") from error
        raise


def _check_root(image: LazyImage, root: BootstrapRoot) -> None:
    """Raise IntegrityError unless the metadata layer has the bootstrap that the manifest says."""
    view = image.bootstrap.view
    if len(view) != root.size_bytes or digest(Digester.BLAKE3, view).hex() != root.hex:
        raise IntegrityError("the metadata layer has another bootstrap than the manifest says")

"""What a start reads begins to arrive as soon as the manifest is known, beside all other steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lamina.oci.bootstrap_root import bootstrap_root
from lamina.store.records import IMAGE

if TYPE_CHECKING:
    from lamina.content.lazy_image import LazyImage
    from lamina.oci.start_manifest import StartRule
    from lamina.opening.manifest import FoundManifest
    from lamina.opening.place import Place
    from lamina.opening.start_stream import StartStream


class Start:
    """The stream of a start artifact that an image is to have, if there is one."""

    def __init__(self, stream: StartStream | None) -> None:
        self.stream = stream

    def bind(self, image: LazyImage) -> None:
        """Let an opened image have what comes; it closes the stream."""
        if self.stream is not None:
            from lamina.opening.start_stream import bind_start

            bind_start(self.stream, image)


@contextmanager
def early_start(place: Place, found: FoundManifest, rule: StartRule | None) -> Iterator[Start]:
    """Begin to read the start artifact of an image if *rule* wants one; what is yielded binds it to
    the image, which closes it from then on.
    """
    if rule is None:
        yield Start(None)
        return
    from lamina.opening.start_stream import begin_start

    root = None if found.manifest.is_sealed else bootstrap_root(found.manifest)
    stream = begin_start(place, found, rule, root)
    try:
        yield Start(stream)
    except BaseException:
        stream.close()
        raise


def may_be_early(place: Place, found: FoundManifest, *, is_replaceable: bool = False) -> bool:
    """Tell whether an image may be used before its metadata layer has come: its manifest proves
    pages of the bootstrap, nothing of it is sealed, and the store has not got it anyhow.  One that
    *is_replaceable* is indexed anew if the index that was found beside it is not good.
    """
    if found.manifest.is_sealed or found.image.is_encrypted:
        return False
    if is_replaceable and found.is_offered:
        return False
    known = place.store.records.read(IMAGE, found.digest)
    return known is None and bootstrap_root(found.manifest) is not None

"""A layer as a tar archive, however it is stored: a tar in any compression, or an EROFS file
system.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, BinaryIO

from lamina.archive.erofs_layer import ErofsTar, is_erofs_layer
from lamina.archive.stream import LayerStream, open_layer
from lamina.build.diff_ids import checked_tar
from lamina.build.options import work_folder

if TYPE_CHECKING:
    from lamina.build.scan import TarStream
    from lamina.oci.manifest import Descriptor

_READ_BYTES = 1 << 20


@contextmanager
def layer_stream(
    raw: BinaryIO,
    layer: Descriptor,
    diff_id: str | None,
    max_layer_bytes: int,
    work_dir: str | None = None,
) -> Iterator[TarStream]:
    """Give the archive of a layer that is read from *raw*, its diff_id checked at its end if one is
    given.  An EROFS file system is read to its end before, into a file in *work_dir*.

    Raises what :func:`lamina.archive.stream.open_layer` does, and what reading the layer raises.
    """
    if not is_erofs_layer(layer.media_type):
        yield checked_tar(open_layer(raw, layer.media_type, max_layer_bytes), layer, diff_id)
        return
    stored = checked_tar(LayerStream(raw, max_layer_bytes), layer, diff_id)
    with closing(ErofsTar(stored, work_folder(work_dir), max_layer_bytes)) as archive:
        # Its digest is verified before anything of it is believed.
        while raw.read(_READ_BYTES):
            pass
        yield archive

from __future__ import annotations

import pytest

from lamina.build.index_build import IndexOptions, build_from_layers
from lamina.build.options import ConvertOptions
from lamina.codec.compress import Compressor
from lamina.errors import UnsupportedError, UsageError
from lamina.oci.manifest import OCI_LAYER_GZIP, Descriptor


@pytest.mark.parametrize(
    ("compressor", "level", "fits"),
    [
        (Compressor.ZSTD, 22, True),
        (Compressor.ZSTD, 23, False),
        (Compressor.ZSTD, -5, True),
        (Compressor.LZ4_BLOCK, 10**10, False),
        (Compressor.LZ4_BLOCK, 8, True),
        (Compressor.NONE, 99, True),
    ],
)
def test_levels(compressor: Compressor, level: int, fits: bool) -> None:
    options = ConvertOptions(compressor=compressor, level=level)
    if fits:
        options.check()
    else:
        with pytest.raises(UsageError, match="level"):
            options.check()


def test_chunks_of_an_index_fit_where_they_are_stored_as_they_are() -> None:
    IndexOptions(chunk_size=8 << 20).check()
    with pytest.raises(UsageError, match="8 MiB"):
        IndexOptions(chunk_size=16 << 20).check()


def test_layers_with_other_digests_have_no_index() -> None:
    layer = Descriptor(media_type=OCI_LAYER_GZIP, digest="sha512:" + "ab" * 64, size=1)
    with pytest.raises(UnsupportedError, match="SHA-256"):
        build_from_layers(None, [layer], IndexOptions())  # type: ignore[arg-type]

"""Opening an image as every door does: by an :class:`~lamina.opening.request.OpenRequest`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from lamina.build.node_index import index_here
from lamina.content.lazy_image import LazyImage
from lamina.oci.reference import Reference
from lamina.opening import open_image as pipeline
from lamina.opening.lazy_index import IndexRule
from lamina.opening.request import IndexUse, request_of
from lamina.source.blob_source import BlobSource


def open_image(
    reference: str | Reference,
    *,
    index: IndexUse | IndexRule = "auto",
    refresh: bool = False,
    sources: Sequence[BlobSource] = (),
    **keywords: Any,
) -> LazyImage:
    """Open an image; *keywords* are those of :func:`lamina.open`."""
    judge = None
    if isinstance(index, IndexRule):
        index, judge = index.use, index.policy
    request = replace(request_of(reference, index=index, **keywords), refresh=refresh)
    indexer = index_here if index == "always" else None
    return pipeline.open_image(request, indexer=indexer, judge=judge, sources=sources)

"""The merged tree of an index, from the layers that were read."""

from __future__ import annotations

from typing import NamedTuple

from lamina.build.budget import Share
from lamina.build.index_table import IndexBlob
from lamina.build.layer_blob import with_blob_index
from lamina.build.layer_tree import apply_layer
from lamina.build.merge import MergedTree
from lamina.build.package import BootstrapLayer, bootstrap_layer
from lamina.build.plan import LayerPlan, encode_references
from lamina.build.scan import LayerScan
from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.writer import BootstrapOptions, write_bootstrap


class BuiltIndex(NamedTuple):
    """The index of one image before it is pushed; ``blobs`` are its layers with data, in order.

    ``by_table`` says that the layers were not read; ``table_problem`` why they were although some
    have tables of contents.
    """

    blobs: list[IndexBlob]
    last: BootstrapLayer
    by_table: bool
    table_problem: str


class IndexMerge:
    """Takes the layers of an image in their order; call :meth:`finish` after the last."""

    def __init__(self, chunk_size: int, digester: Digester, budget: Share) -> None:
        """*budget* counts the directories that no entry describes."""
        self._options = BootstrapOptions(chunk_size, Compressor.GZIP, digester)
        self._tree = MergedTree(budget)
        self._blobs: list[IndexBlob] = []
        self._plans: list[LayerPlan] = []
        self._numbers: dict[str, int] = {}

    def add(self, layer_id: str, scan: LayerScan, plan: LayerPlan, blob: IndexBlob | None) -> None:
        """Put a layer on those before it; ``blob`` is None if it has no data.

        Raises FormatError where an entry cannot be placed.
        """
        self._plans.append(plan)
        # An image may have one layer twice, but only one blob of it.
        own = self._numbers.setdefault(layer_id, len(self._blobs))
        indexes = encode_references(plan.references, self._plans, {plan.layer: own})
        apply_layer(self._tree, scan, indexes, lambda node: node)
        if blob is not None and own == len(self._blobs):
            self._blobs.append(blob)

    def finish(self, *, by_table: bool, table_problem: str) -> BuiltIndex:
        """Return the index of the layers, with how it was found (see :class:`BuiltIndex`)."""
        entries = [with_blob_index(blob.chunk_entries, i) for i, blob in enumerate(self._blobs)]
        bootstrap = write_bootstrap(
            self._tree.root, [blob.entry for blob in self._blobs], b"".join(entries), self._options
        )
        return BuiltIndex(self._blobs, bootstrap_layer(bootstrap, ()), by_table, table_problem)

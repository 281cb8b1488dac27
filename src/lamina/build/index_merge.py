"""The merged tree of an index, from the layers that were read."""

from __future__ import annotations

from typing import NamedTuple

from lamina.build.bootstrap import fill_in
from lamina.build.budget import Share
from lamina.build.index_table import IndexBlob
from lamina.build.layer_tree import apply_layer
from lamina.build.merge import MergedTree
from lamina.build.overlay_tree import overlay_tree, renumber_devices, used_devices
from lamina.build.package import BootstrapLayer, bootstrap_layer
from lamina.build.plan import LayerPlan, encode_references
from lamina.build.scan import LayerScan
from lamina.codec.compress import Compressor
from lamina.codec.digest import Digester
from lamina.erofs.tree import Node
from lamina.erofs.writer import BootstrapOptions, lay_out_bootstrap


class BuiltIndex(NamedTuple):
    """The index of one image before it is pushed; ``blobs`` are its layers with data, in order.

    ``by_table`` says that the layers were not read; ``table_problem`` why they were although some
    have tables of contents.  ``layer_trees`` are the bootstraps of the layers each by itself, one a
    layer of the image, if they were asked for.
    """

    blobs: list[IndexBlob]
    last: BootstrapLayer
    by_table: bool
    table_problem: str
    layer_trees: tuple[bytearray, ...] = ()


class IndexMerge:
    """Takes the layers of an image in their order; call :meth:`finish` after the last."""

    def __init__(
        self, chunk_size: int, digester: Digester, budget: Share, *, layer_trees: bool = False
    ) -> None:
        """*budget* counts the directories that no entry describes; *layer_trees* asks for them."""
        self._options = BootstrapOptions(chunk_size, Compressor.GZIP, digester)
        self._tree = MergedTree(budget)
        self._blobs: list[IndexBlob] = []
        self._numbers: dict[str, int] = {}
        self._layer_trees: list[bytearray] | None = [] if layer_trees else None

    def add(self, layer_id: str, scan: LayerScan, plan: LayerPlan, blob: IndexBlob | None) -> None:
        """Put a layer on those before it; ``blob`` is None if it has no data.

        Raises FormatError where an entry cannot be placed.
        """
        # An image may have one layer twice, but only one blob of it.
        own = self._numbers.setdefault(layer_id, len(self._blobs))
        plans = {plan.layer: plan}
        indexes = encode_references(plan.references, plans, {plan.layer: own})
        del plan
        applied = apply_layer(self._tree, scan, indexes, lambda node: node)
        if blob is not None and own == len(self._blobs):
            self._blobs.append(blob)
        if self._layer_trees is not None:
            # Now: what is laid over it changes folders that it shares with the merged tree.
            self._layer_trees.append(self._by_itself(applied.own.root))
        self._tree.pack(applied.take_own_root())

    def _by_itself(self, own: Node) -> bytearray:
        """Return the bootstrap of one layer, over the blobs that it has data in."""
        root = overlay_tree(own)
        devices = used_devices(root)
        renumber_devices(root, {device: number for number, device in enumerate(devices, 1)})
        return self._lay_out(root, [self._blobs[device - 1] for device in devices])

    def _lay_out(self, root: Node, blobs: list[IndexBlob]) -> bytearray:
        tables = [blob.chunk_entries for blob in blobs]
        entries = [blob.entry for blob in blobs]
        image = lay_out_bootstrap(root, entries, sum(map(len, tables)), self._options)
        return fill_in(image, entries, tables)

    def finish(self, *, by_table: bool, table_problem: str) -> BuiltIndex:
        """Return the index of the layers, with how it was found (see :class:`BuiltIndex`)."""
        bootstrap = self._lay_out(self._tree.root, self._blobs)
        del self._tree
        last = bootstrap_layer(bootstrap, ())
        trees = tuple(self._layer_trees or ())
        return BuiltIndex(self._blobs, last, by_table, table_problem, trees)

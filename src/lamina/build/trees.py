"""The trees of an image that is converted: of each layer by itself, and of all of them merged."""

from __future__ import annotations

from lamina.build.bootstrap import lay_out, missing_paths
from lamina.build.budget import Share
from lamina.build.layer_tree import AppliedLayer
from lamina.build.merge import MergedTree
from lamina.build.options import ConvertOptions
from lamina.build.own_blobs import OwnBlobs
from lamina.build.plan import LayerPlan, encode_references
from lamina.build.scan import LayerScan
from lamina.build.tree_process import MergedLayout, OwnLayout, Parcel
from lamina.erofs.layout import MAX_BLOBS
from lamina.errors import UnsupportedError


class Trees:
    """Takes layers in their order, the entries of each before its plan; finish after the last."""

    def __init__(self, options: ConvertOptions, budget: Share) -> None:
        self._options = options
        self._tree = MergedTree(budget)
        self._applied = AppliedLayer(self._tree)
        self._plans: dict[int, LayerPlan] = {}
        self._device_layers: list[int] = []

    def add(self, entries: LayerScan) -> None:
        """Add entries of the next layer.  Raises FormatError where one cannot be placed."""
        self._applied.add(entries)

    def end_layer(self, plan: LayerPlan) -> OwnLayout:
        """Lay the layer over those before, and lay out its own bootstrap."""
        self._plans[plan.layer] = plan
        if plan.chunk_count:
            self._device_layers.append(plan.layer)
            if len(self._device_layers) > MAX_BLOBS:
                raise UnsupportedError(
                    f"the image has more than {MAX_BLOBS} layers with data",
                    hint="flatten some of its layers first",
                )
        applied, references = self._applied, plan.references
        own = OwnBlobs(plan, self._device_layers)
        applied.finish(encode_references(references, self._plans, own.indexes), own.adopt)
        own_root = self._tree.pack(applied.take_own_root())
        layout = OwnLayout()
        # Sealed blobs have nothing but pieces in them.
        if self._options.seal is None:
            borrowed = own.borrowed(plan, self._plans)
            plans = [self._plans[number] for number in own.layers]
            count = plan.chunk_count + sum(map(len, borrowed.values()))
            bootstrap = Parcel(lay_out(own_root, plans, count, self._options))
            layout = OwnLayout(bootstrap, list(own.layers), borrowed)
        merged = {number: index for index, number in enumerate(self._device_layers)}
        if {**merged, **own.indexes} != merged:
            applied.set_indexes(encode_references(references, self._plans, merged))
        del plan.references[:]
        self._applied = AppliedLayer(self._tree)
        return layout

    def finish(self) -> MergedLayout:
        """Lay out the bootstrap of all layers."""
        used = self._used_layers()
        plans = [self._plans[number] for number in used]
        count = sum(plan.chunk_count for plan in plans)
        missing = missing_paths(self._tree.root, self._options)
        bootstrap = lay_out(self._tree.root, plans, count, self._options)
        # There is no room for the tree while the answer is sent.
        del self._tree, self._applied, self._plans
        return MergedLayout(Parcel(bootstrap), used, missing)

    def _used_layers(self) -> list[int]:
        """Return the layers that the merged tree takes data from, renumbering its blobs if some are
        not used.
        """
        rows = self._tree.rows
        found = rows.devices(self._tree.root.rows_below())
        devices = {device: index for index, device in enumerate(sorted(found), 1)}
        if len(found) != len(self._device_layers):
            rows.renumber(devices)
        return [self._device_layers[device - 1] for device in devices]

"""The blobs that a layer's own bootstrap refers to."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from lamina.build.known_chunks import LAYER_SHIFT
from lamina.build.layer_tree import devices_of, renumber
from lamina.build.plan import SLOT_MASK, LayerPlan
from lamina.erofs.tree import Node


class OwnBlobs:
    """The numbering of blobs in a layer's own bootstrap: its own first, then those of lower layers
    as needed.
    """

    def __init__(self, plan: LayerPlan, device_layers: Sequence[int]) -> None:
        """``device_layers`` are the layers behind the devices of the merged tree, from 1 on."""
        self._layers = [plan.layer] if plan.chunk_count else []
        self._layers += plan.lower_layers
        self._device_layers = device_layers
        self._borrowed: dict[int, set[int]] = {}

    @property
    def layers(self) -> Sequence[int]:
        """Return the layers whose blobs are referred to, in the order of the blob table."""
        return self._layers

    @property
    def indexes(self) -> dict[int, int]:
        """Layer -> blob index."""
        return {layer: index for index, layer in enumerate(self._layers)}

    def borrowed(self, plan: LayerPlan, plans: Mapping[int, LayerPlan]) -> dict[int, array[int]]:
        """Return the numbers of the chunks in lower blobs that are referred to, by layer: those of
        equal chunks, and of files of lower layers that hard links name.
        """
        found = self._borrowed
        for reference in plan.references:
            layer = reference >> LAYER_SHIFT
            if layer != plan.layer:
                word = plans[layer].encoded[reference & SLOT_MASK]
                found.setdefault(layer, set()).add(word & 0xFFFF | (word >> 24 & 0xFF) << 16)
        return {layer: array("I", sorted(found[layer])) for layer in sorted(found)}

    def adopt(self, node: Node) -> Node:
        """Return a node of a lower layer as the layer's own tree has it."""
        if not node.chunks:
            return node
        devices = {}
        for device in sorted(set(devices_of(node.chunks))):
            layer = self._device_layers[device - 1]
            if layer not in self._layers:
                self._layers.append(layer)
            devices[device] = self._layers.index(layer) + 1
        for start in range(0, len(node.chunks), 8):
            index = node.chunks[start : start + 8]
            number = index[0] | index[1] << 8 | index[3] << 16
            self._borrowed.setdefault(self._device_layers[index[2] - 1], set()).add(number)
        # fmt: off
        return Node(node.mode, node.uid, node.gid, node.mtime, node.mtime_ns, node.size, node.rdev,
                    node.target, renumber(node.chunks, devices), node.xattrs)
        # fmt: on

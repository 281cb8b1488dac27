"""The calls that a container makes to a snapshotter, as containerd sends them."""

from __future__ import annotations

from typing import Any, Self

import grpc
from google.protobuf.empty_pb2 import Empty

from lamina.containerd.rpc import SERVICE
from lamina.containerd.wire import snapshots_pb2 as wire

COMMITTED = 3


class SnapshotCalls:
    """A connection to the socket of a snapshotter."""

    def __init__(self, socket: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def top(self) -> str:
        """Return the committed snapshot that no other is on."""
        call = self._channel.unary_stream(
            f"/{SERVICE}/List",
            request_serializer=wire.ListRequest.SerializeToString,
            response_deserializer=wire.ListResponse.FromString,
        )
        found = [info for answer in call(wire.ListRequest()) for info in answer.info]
        parents = {info.parent for info in found if info.kind == COMMITTED}
        return next(str(i.name) for i in found if i.kind == COMMITTED and i.name not in parents)

    def prepare(self, key: str, parent: str) -> None:
        """Make a snapshot for a container."""
        self._ask("Prepare", wire.PrepareRequest(key=key, parent=parent), wire.MountsResponse)

    def mounts(self, key: str) -> None:
        """Ask how to mount it."""
        self._ask("Mounts", wire.KeyRequest(key=key), wire.MountsResponse)

    def remove(self, key: str) -> None:
        """Remove it."""
        self._ask("Remove", wire.KeyRequest(key=key), Empty)

    def _ask(self, method: str, request: Any, answer: Any) -> None:
        self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )(request, timeout=30)

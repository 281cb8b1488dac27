"""A client of the snapshotter, as containerd is one, and a server to talk to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from lamina.containerd.layer_folders import LayerFolders
from lamina.containerd.lazy_layers import LazyLayers, Trust
from lamina.containerd.records import SnapshotRecords
from lamina.containerd.rpc import SERVICE, handlers
from lamina.containerd.snapshotter import Snapshotter
from lamina.containerd.trees import Trees
from lamina.containerd.wire import snapshots_pb2 as wire
from lamina.opening.request import OpenRequest

NAME = "lamina"


class Client:
    """One method a call; raises :class:`grpc.RpcError`."""

    def __init__(self, socket: str) -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket}")

    def _ask(self, method: str, request: Any, answer: Any, timeout: float | None = 30) -> Any:
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=timeout)

    def prepare(
        self, key: str, parent: str = "", labels: dict[str, str] | None = None, **how: Any
    ) -> list[Any]:
        request = wire.PrepareRequest(snapshotter=NAME, key=key, parent=parent, labels=labels)
        return list(self._ask("Prepare", request, wire.MountsResponse, **how).mounts)

    def view(self, key: str, parent: str = "", labels: dict[str, str] | None = None) -> list[Any]:
        request = wire.PrepareRequest(snapshotter=NAME, key=key, parent=parent, labels=labels)
        return list(self._ask("View", request, wire.MountsResponse).mounts)

    def mounts(self, key: str) -> list[Any]:
        request = wire.KeyRequest(snapshotter=NAME, key=key)
        return list(self._ask("Mounts", request, wire.MountsResponse).mounts)

    def commit(self, name: str, key: str, labels: dict[str, str] | None = None) -> None:
        request = wire.CommitRequest(snapshotter=NAME, name=name, key=key, labels=labels)
        self._ask("Commit", request, Empty)

    def remove(self, key: str) -> None:
        self._ask("Remove", wire.KeyRequest(snapshotter=NAME, key=key), Empty)

    def stat(self, key: str) -> Any:
        return self._ask("Stat", wire.KeyRequest(snapshotter=NAME, key=key), wire.InfoResponse).info

    def update(self, key: str, labels: dict[str, str], *paths: str) -> Any:
        request = wire.UpdateRequest(snapshotter=NAME, info=wire.Info(name=key, labels=labels))
        request.update_mask.paths.extend(paths)
        return self._ask("Update", request, wire.InfoResponse).info

    def list(self, *filters: str) -> list[Any]:
        call = self.channel.unary_stream(
            f"/{SERVICE}/List",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=wire.ListResponse.FromString,
        )
        request = wire.ListRequest(snapshotter=NAME, filters=filters)
        return [info for answer in call(request, timeout=30) for info in answer.info]

    def usage(self, key: str) -> Any:
        return self._ask("Usage", wire.KeyRequest(snapshotter=NAME, key=key), wire.UsageResponse)

    def cleanup(self) -> None:
        self._ask("Cleanup", wire.CleanupRequest(snapshotter=NAME), Empty)


@contextlib.contextmanager
def served(root: Path, trust: Trust | None = None) -> Iterator[Client]:
    """Serve the snapshots below a folder; what is mounted goes to nobody."""
    root.mkdir(exist_ok=True)
    trust = trust or Trust(OpenRequest(reference="docker://any"), {})
    with SnapshotRecords(root / "snapshots.db") as records:
        folders, trees = LayerFolders(root), Trees(root)
        lazy = LazyLayers(records, folders, trees, trust)
        server = grpc.server(ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers((handlers(Snapshotter(records, folders, trees, lazy)),))
        server.add_insecure_port(f"unix:{root / 'socket'}")
        server.start()
        try:
            client = Client(str(root / "socket"))
            with contextlib.closing(client.channel):
                yield client
        finally:
            server.stop(5).wait()

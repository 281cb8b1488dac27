"""The calls of containerd that a pull needs, as a client with one namespace and one lease."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import grpc
from google.protobuf.empty_pb2 import Empty

from lamina.containerd.rpc import SERVICE as SNAPSHOTS
from lamina.containerd.wire import pulling_pb2 as wire
from lamina.containerd.wire import snapshots_pb2 as snapshots
from lamina.errors import Error, FetchError, UnsupportedError

CONTENT: Final = "containerd.services.content.v1.Content"
IMAGES: Final = "containerd.services.images.v1.Images"
LEASES: Final = "containerd.services.leases.v1.Leases"

_LEASE_S: Final = 3600
"""When containerd lets go of what a puller that died had."""
_PIECE_BYTES: Final = 1 << 20
_CALL_S: Final = 60.0
"""containerd answers at once, but for a garbage collection that it is in."""
_LAYER_S: Final = 600.0
"""A layer is offered with all that looking an image up and mounting it takes; those have deadlines
of their own.
"""
_EXISTS: Final = grpc.StatusCode.ALREADY_EXISTS
_MISSING: Final = grpc.StatusCode.NOT_FOUND


class DaemonError(Error):
    """containerd, or a plugin of it, refused something; the text is its own."""


class Daemon:
    """containerd at a socket.  All methods raise FetchError if it does not answer, DaemonError for
    what it refuses.
    """

    def __init__(
        self, socket: str, namespace: str, call_s: float = _CALL_S, layer_s: float = _LAYER_S
    ) -> None:
        """Wait ``call_s`` for an answer, ``layer_s`` for that to a layer that is offered."""
        self._socket = socket
        self._call_s = call_s
        self._layer_s = layer_s
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._metadata = [("containerd-namespace", namespace)]

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    @contextlib.contextmanager
    def lease(self, name: str) -> Iterator[None]:
        """Keep what is made meanwhile from garbage collection."""
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _LEASE_S))
        labels = {"containerd.io/gc.expire": expires}
        self._ask(LEASES, "Create", wire.CreateLeaseRequest(id=name, labels=labels), wire.Nothing)
        self._metadata.append(("containerd-lease", name))
        try:
            yield
        finally:
            self._metadata.pop()
            self._ask(LEASES, "Delete", wire.DeleteLeaseRequest(id=name), Empty)

    def put(self, name: str, data: bytes, digest: str, labels: Mapping[str, str]) -> None:
        """Keep some content with its labels."""
        try:
            self._write(name, data, digest, labels)
        except grpc.RpcError as error:
            if error.code() != _EXISTS:
                raise self._fault(error) from error
            info = wire.ContentInfo(digest=digest, labels=labels)
            request = wire.UpdateContentRequest(info=info)
            request.update_mask.paths.extend(f"labels.{key}" for key in labels)
            self._ask(CONTENT, "Update", request, wire.Nothing)

    def _write(self, name: str, data: bytes, digest: str, labels: Mapping[str, str]) -> None:
        def requests() -> Iterator[Any]:
            same: dict[str, Any] = {"ref": name, "total": len(data), "expected": digest}
            for start in range(0, len(data), _PIECE_BYTES):
                piece = data[start : start + _PIECE_BYTES]
                yield wire.WriteContentRequest(action=wire.WRITE, offset=start, data=piece, **same)
            yield wire.WriteContentRequest(
                action=wire.COMMIT, offset=len(data), labels=labels, **same
            )

        call = self._channel.stream_stream(
            f"/{CONTENT}/Write",
            request_serializer=wire.WriteContentRequest.SerializeToString,
            response_deserializer=wire.WriteContentResponse.FromString,
        )
        for _ in call(requests(), metadata=self._metadata, timeout=self._call_s):
            pass

    def name_image(self, name: str, target: Any) -> None:
        """Give an image its name, also one that had another target."""
        image = wire.Image(name=name, target=target)
        request = wire.ImageRequest(image=image)
        with self._unless(_EXISTS) as made:
            self._call(IMAGES, "Create", request, wire.ImageRequest)
        if not made:
            update = wire.UpdateImageRequest(image=image)
            update.update_mask.paths.append("target")
            self._ask(IMAGES, "Update", update, wire.ImageRequest)

    def has_snapshot(self, snapshotter: str, name: str) -> bool:
        """Tell whether there is a snapshot."""
        with self._unless(_MISSING) as found:
            request = snapshots.KeyRequest(snapshotter=snapshotter, key=name)
            self._call(SNAPSHOTS, "Stat", request, snapshots.InfoResponse)
        return bool(found)

    def offer_layer(
        self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> bool:
        """Prepare a layer to be unpacked; return whether it is there without that.

        If it is not, nothing is left of the preparation.
        """
        with self._unless(_EXISTS) as prepared:
            request = snapshots.PrepareRequest(
                snapshotter=snapshotter, key=key, parent=parent, labels=labels
            )
            self._call(SNAPSHOTS, "Prepare", request, snapshots.MountsResponse, self._layer_s)
        if prepared:
            gone = snapshots.KeyRequest(snapshotter=snapshotter, key=key)
            self._ask(SNAPSHOTS, "Remove", gone, Empty)
        return not prepared

    @contextlib.contextmanager
    def _unless(self, code: grpc.StatusCode) -> Iterator[list[bool]]:
        """Yield a list that has something in it afterwards, unless a call ended with ``code``."""
        done: list[bool] = []
        try:
            yield done
            done.append(True)
        except grpc.RpcError as error:
            if error.code() != code:
                raise self._fault(error) from error

    def _ask(self, service: str, method: str, request: Any, answer: Any) -> Any:
        try:
            return self._call(service, method, request, answer)
        except grpc.RpcError as error:
            raise self._fault(error) from error

    def _call(
        self, service: str, method: str, request: Any, answer: Any, timeout_s: float | None = None
    ) -> Any:
        call = self._channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, metadata=self._metadata, timeout=timeout_s or self._call_s)

    def _fault(self, error: Any) -> Error:
        code, text = error.code(), error.details()
        if code == grpc.StatusCode.UNAVAILABLE:
            return FetchError(
                f"containerd does not answer at {self._socket}: {text}",
                hint="name its socket with --address",
            )
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return FetchError(
                f"containerd at {self._socket} takes too long to answer",
                hint="see its log and that of the snapshotter, and pull again",
            )
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return UnsupportedError(f"containerd at {self._socket} cannot do that: {text}")
        return DaemonError(text)

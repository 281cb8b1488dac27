"""The service ``containerd.services.snapshots.v1.Snapshots``: from messages to calls and back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.empty_pb2 import Empty

from lamina.containerd.calls import CallEndedError
from lamina.containerd.snapshot import (
    Kind,
    Mount,
    Snapshot,
    SnapshotExistsError,
    SnapshotMissingError,
    SnapshotStateError,
    Usage,
)
from lamina.containerd.snapshotter import Snapshotter
from lamina.containerd.wire import snapshots_pb2 as wire
from lamina.errors import (
    AuthError,
    Error,
    FetchError,
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreError,
    TrustError,
    UnsupportedError,
    UsageError,
)

LOG: Final = logging.getLogger("lamina")

SERVICE: Final = "containerd.services.snapshots.v1.Snapshots"

_CODES: Final[tuple[tuple[type[Error], grpc.StatusCode], ...]] = (
    (SnapshotExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (SnapshotMissingError, grpc.StatusCode.NOT_FOUND),
    (SnapshotStateError, grpc.StatusCode.FAILED_PRECONDITION),
    (CallEndedError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (TrustError, grpc.StatusCode.PERMISSION_DENIED),
    (AuthError, grpc.StatusCode.UNAUTHENTICATED),
    (FetchError, grpc.StatusCode.UNAVAILABLE),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (StoreError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (FormatError, grpc.StatusCode.DATA_LOSS),
    (IntegrityError, grpc.StatusCode.DATA_LOSS),
    # Of an image: containerd would take NOT_FOUND for a snapshot that is lost.
    (NotFoundError, grpc.StatusCode.FAILED_PRECONDITION),
    (UnsupportedError, grpc.StatusCode.FAILED_PRECONDITION),
)
"""The first that fits; all others are INTERNAL."""
_EXPECTED: Final = (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.NOT_FOUND)
"""Answers to questions, and no refusals."""
_KINDS: Final = {
    Kind.VIEW: wire.VIEW,
    Kind.ACTIVE: wire.ACTIVE,
    Kind.COMMITTED: wire.COMMITTED,
}
_LIST_AT_ONCE: Final = 100


def code_of(error: Error) -> grpc.StatusCode:
    """Return the code that stands for an error."""
    found = (code for kind, code in _CODES if isinstance(error, kind))
    return next(found, grpc.StatusCode.INTERNAL)


def sentence_of(error: Error) -> str:
    """Return what a person reads who pulled or ran something: the error, and what to do."""
    return f"lamina: {error}" + (f" ({error.hint})" if error.hint else "")


Handler: TypeAlias = Callable[[Snapshotter, Any, grpc.ServicerContext], Any]


def _commit(to: Snapshotter, said: Any, _: grpc.ServicerContext) -> Any:
    to.commit(said.name, said.key, dict(said.labels))
    return Empty()


def _remove(to: Snapshotter, said: Any, _: grpc.ServicerContext) -> Any:
    to.remove(said.key)
    return Empty()


def _cleanup(to: Snapshotter, _: Any, __: grpc.ServicerContext) -> Any:
    to.cleanup()
    return Empty()


_CALLS: Final[dict[str, tuple[Any, Handler]]] = {
    "Prepare": (
        wire.PrepareRequest,
        lambda to, said, call: _mounts(to.prepare(said.key, said.parent, dict(said.labels), call)),
    ),
    "View": (
        wire.PrepareRequest,
        lambda to, said, call: _mounts(to.view(said.key, said.parent, dict(said.labels), call)),
    ),
    "Mounts": (wire.KeyRequest, lambda to, said, call: _mounts(to.mounts(said.key, call))),
    "Commit": (wire.CommitRequest, _commit),
    "Remove": (wire.KeyRequest, _remove),
    "Stat": (wire.KeyRequest, lambda to, said, _: _told(to.stat(said.key))),
    "Update": (
        wire.UpdateRequest,
        lambda to, said, _: _told(
            to.update(said.info.name, dict(said.info.labels), list(said.update_mask.paths))
        ),
    ),
    "Usage": (wire.KeyRequest, lambda to, said, _: _used(to.usage(said.key))),
    "Cleanup": (wire.CleanupRequest, _cleanup),
}
"""The calls that are answered once: what is said, and the answer."""


NoteCall: TypeAlias = Callable[[str, float, str | None], None]
"""Is told of each call: its method, how many seconds it took, and the code of an error."""


def handlers(snapshotter: Snapshotter, note: NoteCall = lambda *_: None) -> grpc.GenericRpcHandler:
    """Return the handlers of the service, for :meth:`grpc.Server.add_generic_rpc_handlers`."""
    found = {
        name: grpc.unary_unary_rpc_method_handler(
            _answering(snapshotter, answer, partial(note, name)),
            request_deserializer=kind.FromString,
            response_serializer=_encode,
        )
        for name, (kind, answer) in _CALLS.items()
    }
    found["List"] = grpc.unary_stream_rpc_method_handler(
        _listing(snapshotter),
        request_deserializer=wire.ListRequest.FromString,
        response_serializer=_encode,
    )
    return grpc.method_handlers_generic_handler(SERVICE, found)


def _encode(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _answering(
    snapshotter: Snapshotter, answer: Handler, note: Callable[[float, str | None], None]
) -> Callable[[Any, grpc.ServicerContext], Any]:
    def handle(said: Any, context: grpc.ServicerContext) -> Any:
        begun = time.monotonic()
        refusal = None
        try:
            return answer(snapshotter, said, context)
        except Error as error:
            code = code_of(error)
            refusal = None if code in _EXPECTED else code.name
            _abort(context, error)
        finally:
            note(time.monotonic() - begun, refusal)

    return handle


def _listing(snapshotter: Snapshotter) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
    def handle(said: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            found = snapshotter.list(list(said.filters))
        except Error as error:
            _abort(context, error)
            return
        for start in range(0, len(found), _LIST_AT_ONCE):
            some = found[start : start + _LIST_AT_ONCE]
            yield wire.ListResponse(info=[_info(each) for each in some])

    return handle


def _abort(context: grpc.ServicerContext, error: Error) -> None:
    code = code_of(error)
    expected = code in _EXPECTED
    LOG.log(logging.DEBUG if expected else logging.WARNING, "%s: %s", code.name, error)
    context.abort(code, str(error) if expected else sentence_of(error))


def _mounts(mounts: Sequence[Mount]) -> Any:
    found = [wire.Mount(type=kind, source=source, options=each) for kind, source, each in mounts]
    return wire.MountsResponse(mounts=found)


def _told(snapshot: Snapshot) -> Any:
    return wire.InfoResponse(info=_info(snapshot))


def _used(usage: Usage) -> Any:
    return wire.UsageResponse(size=usage.size_bytes, inodes=usage.inodes)


def _info(snapshot: Snapshot) -> Any:
    info = wire.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=_KINDS[snapshot.kind],
        labels=dict(snapshot.labels),
    )
    info.created_at.FromNanoseconds(snapshot.created_ns)
    info.updated_at.FromNanoseconds(snapshot.updated_ns)
    return info

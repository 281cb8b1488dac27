"""The snapshotter as a process: its root folder, its socket, ready and stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lamina.containerd.lazy_layers import Trust
from lamina.errors import Error, StoreError, UnsupportedError, UsageError, os_hint

if TYPE_CHECKING:
    import socket as sockets

    from grpc import GenericRpcHandler

    from lamina.containerd.metrics import SnapshotterMetrics
    from lamina.containerd.records import SnapshotRecords
    from lamina.serve.service.channel import Channel

LOG: Final = logging.getLogger("lamina")

SOCKET_BYTES: Final = 107
"""What fits into ``sun_path`` (unix(7)), with its end."""

_LOGINS: Final = ".logins"
"""What the name of the socket ends with where the mount service asks for logins."""
_THREADS: Final = 64
"""Prepares that wait for a registry leave room for the calls that wait for nobody."""
_GRACE_S: Final = 5.0
_END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Place(NamedTuple):
    """Where a snapshotter keeps its snapshots, where it listens, how it mounts, the socket of the
    containerd whose image service it stands before, if any, and the listening socket for who asks
    for metrics, which it owns.
    """

    root: Path
    socket: str
    device: str = "auto"
    containerd: str | None = None
    metrics: sockets.socket | None = None


def serve(place: Place, trust: Trust, ready: Callable[[], None]) -> None:
    """Serve, and call ``ready`` when that has begun, until SIGTERM or SIGINT; the mounts stay.

    The process must have one thread.  Raises UsageError, StoreError (the root folder cannot be
    used, or is used by another one), KernelError, and UnsupportedError where grpcio is not
    installed.
    """
    if len(os.fsencode(place.socket + _LOGINS)) > SOCKET_BYTES:
        raise UsageError(f"the path of the socket is too long: {place.socket}")
    ended = threading.Event()
    for number in _END_SIGNALS:
        # Handled and not blocked, which the mount service would inherit.
        signal.signal(number, lambda *_: ended.set())
    _make_folder(place.root, 0o700)
    device = _device(place)
    with _listening(place._replace(device=device), trust):
        from lamina.serve.service.systemd_fdstore import notify

        ready()
        notify("READY=1")
        ended.wait()
        notify("STOPPING=1")


def _device(place: Place) -> str:
    """Return the device to mount by; the kernel is tried before there are threads."""
    from lamina.serve.short_read_probe import NoKernelMountError, require_no_short_reads

    if place.device not in ("auto", "fuse-blob"):
        return place.device
    try:
        require_no_short_reads(place.root)
    except NoKernelMountError as error:
        if place.device != "auto":
            raise
        LOG.info("no kernel mount (%s), so whole trees are served by FUSE", error)
        return "fuse"
    return "fuse-blob"


@contextlib.contextmanager
def _listening(place: Place, trust: Trust) -> Iterator[None]:
    try:
        import grpc
        from google import protobuf  # noqa: F401 - the messages need it
    except ImportError as error:
        raise UnsupportedError(
            "the snapshotter needs the packages 'grpcio' and 'protobuf'",
            hint="pip install 'lamina[containerd]'",
        ) from error
    from lamina.containerd.image_service import OPTIONS

    with contextlib.ExitStack() as stack:
        _make_folder(Path(place.socket).parent, 0o711)
        server = grpc.server(ThreadPoolExecutor(_THREADS, "call"), options=OPTIONS)
        server.add_generic_rpc_handlers(_services(stack, place, trust))
        mask = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{place.socket}")
        except RuntimeError as error:
            raise StoreError(f"cannot listen at {place.socket}: {error}") from error
        finally:
            os.umask(mask)
        server.start()
        service: list[Channel] = []
        threading.Thread(target=_keep_service, args=(service,), daemon=True).start()
        try:
            yield
        finally:
            server.stop(_GRACE_S).wait()
            for channel in service:
                channel.close()


def _services(stack: contextlib.ExitStack, place: Place, trust: Trust) -> list[GenericRpcHandler]:
    """Return what answers containerd, with all that it needs open until the end of ``stack``."""
    from lamina.containerd.image_service import ImageService
    from lamina.containerd.layer_folders import LayerFolders
    from lamina.containerd.lazy_layers import LazyLayers
    from lamina.containerd.pull_logins import PullLogins
    from lamina.containerd.records import SnapshotRecords
    from lamina.containerd.rpc import handlers
    from lamina.containerd.snapshotter import Snapshotter
    from lamina.containerd.trees import Trees

    records = stack.enter_context(SnapshotRecords(place.root / "snapshots.db"))
    services: list[GenericRpcHandler] = []
    if place.containerd is not None:
        logins = PullLogins(place.socket + _LOGINS)
        stack.enter_context(logins.answering())
        images = ImageService(place.containerd, logins)
        stack.callback(images.close)
        services.append(images)
        trust = trust._replace(logins=logins)
    folders, trees = LayerFolders(place.root), Trees(place.root, place.device)
    lazy = LazyLayers(records, folders, trees, trust)
    lazy.drop_broken()
    snapshotter = Snapshotter(records, folders, trees, lazy)
    if place.metrics is None:
        return [*services, handlers(snapshotter)]
    metrics = _serve_metrics(stack, place.metrics, records, trust)
    trees.note_mount = metrics.note_mount
    return [*services, handlers(snapshotter, metrics.note_call)]


def _serve_metrics(
    stack: contextlib.ExitStack, listening: sockets.socket, records: SnapshotRecords, trust: Trust
) -> SnapshotterMetrics:
    from lamina.containerd.metrics import SnapshotterMetrics
    from lamina.serve.metrics_server import serving_page
    from lamina.store.node import NodeStore

    root, budget = trust.template.store, trust.template.store_budget
    store = NodeStore(None if root is None else Path(root), budget=budget)
    metrics = SnapshotterMetrics(records, store)
    stack.enter_context(serving_page(listening, metrics.page))
    return metrics


def _keep_service(connections: list[Channel]) -> None:
    """Have the mount service running before the first image is asked for, which would wait for it;
    it stays as long as somebody is connected.
    """
    from lamina.serve.service.client import connect_or_start

    try:
        connections.append(connect_or_start())
    except Error as error:
        LOG.warning("the mount service does not start: %s", error)


def _make_folder(folder: Path, mode: int) -> None:
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {folder}: {error.strerror}", hint=os_hint(error)
        ) from error

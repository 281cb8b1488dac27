"""What Prometheus is told of this user's mounts, of the mount service and of the node store.

Nothing is counted for it: each look asks the service, as ``lamina mounts`` does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from lamina.errors import KernelError, UnsupportedError
from lamina.serve.mounts import MountState, MountStatus, list_mounts
from lamina.serve.service.client import service_status
from lamina.store.node import NodeStore

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

LOG: Final = logging.getLogger("lamina")

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_MOUNT_LABELS: Final = ("mountpoint", "image_ref")
_COSTS: Final = {
    "requests": "Requests to registries and mirrors for what the image's blobs have.",
    "fetched_bytes": "Bytes that came from registries and mirrors.",
    "ahead_bytes": "Those of the fetched bytes that nobody had asked for yet.",
    "copied_bytes": "Bytes that other blobs of the node had, decompressed.",
    "decoded_bytes": "Bytes that were proven and written to the node store, decompressed.",
}


class Collector(Protocol):
    """Something that looks when it is asked."""

    def collect(self) -> Iterable[Metric]:
        """Return what there is to tell now."""


def require_client() -> None:
    """Raise UnsupportedError where the package is not installed that writes such pages."""
    try:
        import prometheus_client  # noqa: F401 - looked for
    except ImportError as error:
        raise UnsupportedError(
            "metrics need the package 'prometheus-client'", hint="pip install 'lamina[metrics]'"
        ) from error


def new_registry(*collectors: Collector) -> CollectorRegistry:
    """Return a registry of these collectors alone.  Raises UnsupportedError."""
    require_client()
    from prometheus_client import CollectorRegistry

    # Asked for a description, a collector would look at all mounts.
    registry = CollectorRegistry(auto_describe=False)
    for each in collectors:
        registry.register(each)
    return registry


def page_of(registry: CollectorRegistry) -> bytes:
    """Return all that the collectors tell now, in Prometheus' text format."""
    from prometheus_client import generate_latest

    page: bytes = generate_latest(registry)
    return page


class ServiceMetrics:
    """Tells of the mounts, of the processes of the service and of a store."""

    def __init__(self, store: NodeStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Look, and yield families; of a service that does not answer that it does not."""
        from prometheus_client.core import GaugeMetricFamily

        try:
            status, mounts = service_status(()), list_mounts()
        except KernelError as error:
            LOG.warning("the metrics have no mounts: %s", error)
            status, mounts = None, []
        yield GaugeMetricFamily(
            "lamina_service_up", "1 while a mount service answers.", float(status is not None)
        )
        memory = GaugeMetricFamily(
            "nydusd_rss_kilobytes",
            "Memory (RSS) of the processes of the mount service.",
            labels=("daemon_id",),
        )
        for role, pid in sorted(status.pids.items() if status is not None else ()):
            memory.add_metric((role,), _rss_kilobytes(pid))
        yield memory
        yield from _mount_families(mounts)
        yield from self._store_families()

    def _store_families(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        space = self._store.space
        used = space.used_bytes()
        yield GaugeMetricFamily(
            "snapshotter_cache_usage_kilobytes", "What the node store takes on disk.", used / 1024
        )
        yield GaugeMetricFamily("lamina_store_used_bytes", "The same in bytes.", used)
        if space.budget_bytes is not None:
            yield GaugeMetricFamily(
                "lamina_store_budget_bytes", "What the node store may take.", space.budget_bytes
            )


def _mount_families(mounts: list[MountStatus]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    states = GaugeMetricFamily("lamina_mounts", "Mounts by how they are.", labels=("state",))
    for state in MountState:
        states.add_metric((str(state),), sum(each.state is state for each in mounts))
    yield states
    sizes = {
        name: GaugeMetricFamily(f"lamina_mount_{name}", text, labels=_MOUNT_LABELS)
        for name, text in (
            ("ready_bytes", "What is here of the image's blobs, decompressed."),
            ("total_bytes", "What the image's blobs are, decompressed."),
        )
    }
    costs = {
        name: CounterMetricFamily(f"lamina_mount_{name}", text, labels=_MOUNT_LABELS)
        for name, text in _COSTS.items()
    }
    waited = 0.0
    for each in mounts:
        labels = tuple(map(_shown, (each.record.mountpoint, each.record.image)))
        if each.ready_bytes is not None and each.total_bytes is not None:
            sizes["ready_bytes"].add_metric(labels, each.ready_bytes)
            sizes["total_bytes"].add_metric(labels, each.total_bytes)
        if each.cost is not None:
            waited = max(waited, each.cost.waited_s)
            for name, family in costs.items():
                family.add_metric(labels, getattr(each.cost, name))
    yield from sizes.values()
    yield from costs.values()
    yield CounterMetricFamily(
        "lamina_service_waited_seconds",
        "How long some reader of some image waited for bytes.",
        waited,
    )


def _shown(text: str) -> str:
    """Return text that can be written as UTF-8."""
    return os.fsencode(text).decode(errors="replace")


def _rss_kilobytes(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/statm") as file:
            pages = int(file.read().split()[1])
    except OSError:
        # It has ended meanwhile.
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024

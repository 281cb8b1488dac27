"""What Prometheus is told of the snapshotter itself.

Source of the names: nydus-snapshotter, ``pkg/metrics/data``, and stargz-snapshotter,
``fs/metrics/common``, where they mean the same (docs/reference/metrics.md).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from lamina.containerd.records import SnapshotRecords
from lamina.serve.metrics import ServiceMetrics, new_registry, page_of
from lamina.store.node import NodeStore

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_OPERATION_MS: Final = (0.5, 1, 5, 10, 50, 100, 150, 200, 250, 300, 350, 400, 600, 1000)
_MOUNT_MS: Final = tuple(1 << power for power in range(15))


class SnapshotterMetrics:
    """What one snapshotter has done, and how it is.  Threads share it."""

    def __init__(self, records: SnapshotRecords, store: NodeStore) -> None:
        """Raise UnsupportedError where prometheus-client is not installed."""
        self._registry = new_registry(_Snapshots(records), ServiceMetrics(store))
        from prometheus_client import Counter as Count
        from prometheus_client import Histogram, ProcessCollector

        ProcessCollector(registry=self._registry)
        self._operations = Histogram(
            "snapshotter_snapshot_operation_elapsed_milliseconds",
            "How long containerd's calls took.",
            ("snapshot_operation",),
            buckets=_OPERATION_MS,
            registry=self._registry,
        )
        self._mounts = Histogram(
            "stargz_fs_operation_duration_milliseconds",
            "How long it took to open and mount an image.",
            ("operation_type", "layer"),
            buckets=_MOUNT_MS,
            registry=self._registry,
        ).labels("mount", "")
        self._refusals = Count(
            "lamina_snapshotter_refusals",
            "Calls that were answered with an error, by its gRPC code.",
            ("code",),
            registry=self._registry,
        )

    def note_call(self, method: str, took_s: float, refusal: str | None) -> None:
        """Count a call of containerd, with the code of an error that was the answer."""
        self._operations.labels(method.upper()).observe(took_s * 1000)
        if refusal is not None:
            self._refusals.labels(refusal).inc()

    def note_mount(self, took_s: float) -> None:
        """Count an image that was mounted."""
        self._mounts.observe(took_s * 1000)

    def page(self) -> bytes:
        """Return all of it now, in Prometheus' text format."""
        return page_of(self._registry)


class _Snapshots:
    """Looks at the snapshots, and at this process."""

    def __init__(self, records: SnapshotRecords) -> None:
        self._records = records

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        found = Counter(
            (str(each.kind.name).lower(), str(each.lazy is not None and not each.whole).lower())
            for each in self._records.all()
        )
        snapshots = GaugeMetricFamily(
            "lamina_snapshots",
            "Snapshots; those are lazy whose files are in an image that is mounted.",
            labels=("kind", "lazy"),
        )
        for labels, count in sorted(found.items()):
            snapshots.add_metric(labels, count)
        yield snapshots
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        for name, text, value in (
            ("memory_usage_kilobytes", "Memory (RSS)", pages * os.sysconf("SC_PAGE_SIZE") / 1024),
            ("fd_counts", "File descriptors", len(os.listdir("/proc/self/fd"))),
            ("thread_counts", "Threads", len(os.listdir("/proc/self/task"))),
        ):
            yield GaugeMetricFamily(f"snapshotter_{name}", f"{text} of the snapshotter.", value)

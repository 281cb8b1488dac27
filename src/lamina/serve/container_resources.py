"""How much of the machine a container may use, in the words of the OCI runtime specification.

OCI runtime specification 1.0.2, config-linux.md ("Control groups"); kernel documentation,
admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from lamina.errors import UnsupportedError

CPU_PERIOD_US: Final = 100_000

_UNIFIED: Final = "/sys/fs/cgroup/cgroup.controllers"
_SWAP_V1: Final = "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Limits of a container; None is none.

    ``swap_bytes`` is memory and swap together, -1 without limit, None twice the memory as docker
    has it.  ``cpus`` and ``memory_nodes`` are lists as cpuset(7) has them.
    """

    memory_bytes: int | None = None
    reservation_bytes: int | None = None
    swap_bytes: int | None = None
    pids: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpu_shares: int | None = None
    cpus: str | None = None
    memory_nodes: str | None = None
    io_weight: int | None = None

    def controllers(self) -> list[str]:
        """Return the controllers of the kernel that hold them, in cgroup v1's names."""
        wanted = {
            "memory": (self.memory_bytes, self.reservation_bytes, self.swap_bytes),
            "pids": (self.pids,),
            "cpu": (self.cpu_quota_us, self.cpu_period_us, self.cpu_shares),
            "cpuset": (self.cpus, self.memory_nodes),
            "blkio": (self.io_weight,),
        }
        return [name for name, values in wanted.items() if any(v is not None for v in values)]


NO_LIMITS: Final = ResourceLimits()


def resources(limits: ResourceLimits) -> dict[str, Any]:
    """Return the limits as ``linux.resources`` of a runtime configuration has them."""
    swap = limits.swap_bytes
    if swap is None and limits.memory_bytes is not None and _counts_swap():
        swap = 2 * limits.memory_bytes
    objects: dict[str, dict[str, Any]] = {
        "memory": {
            "limit": limits.memory_bytes,
            "reservation": limits.reservation_bytes,
            "swap": swap,
        },
        "pids": {"limit": limits.pids},
        "cpu": {
            "quota": limits.cpu_quota_us,
            "period": limits.cpu_period_us,
            "shares": limits.cpu_shares,
            "cpus": limits.cpus,
            "mems": limits.memory_nodes,
        },
        "blockIO": {"weight": limits.io_weight},
    }
    given = {
        name: {key: value for key, value in values.items() if value is not None}
        for name, values in objects.items()
    }
    return {name: values for name, values in given.items() if values}


def check_controllers(limits: ResourceLimits) -> None:
    """Raise UnsupportedError if this machine has no controller for one of the limits: a limit that
    nobody holds is none.
    """
    here = controllers_here()
    for name in limits.controllers():
        if name not in here:
            raise UnsupportedError(
                f"the control groups of this machine have no controller {name!r}, so the"
                " container's limit cannot be held",
                hint="leave the limit out, or start the kernel with that controller",
            )


def controllers_here() -> set[str]:
    """Return the names of the controllers that containers of this process can have, as cgroup v1
    calls them.
    """
    if (unified := _read(_UNIFIED)) is not None:
        return {"blkio" if name == "io" else name for name in unified.split()}
    lines = (_read("/proc/self/cgroup") or "").splitlines()
    names = {name for line in lines for name in line.split(":")[1].split(",")}
    return {name for name in names if os.path.isdir(f"/sys/fs/cgroup/{name}")}


def _counts_swap() -> bool:
    return os.path.exists(_UNIFIED) or os.path.exists(_SWAP_V1)


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None

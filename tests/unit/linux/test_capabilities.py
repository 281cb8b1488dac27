from __future__ import annotations

from pathlib import Path

from lamina.linux.capabilities import CAPABILITIES, bounding_set


def test_the_bounding_set_is_that_of_the_kernel() -> None:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "CapBnd" in line
    )
    bits = int(line.split()[1], 16) & ((1 << len(CAPABILITIES)) - 1)
    assert bits == sum(1 << CAPABILITIES.index(name) for name in bounding_set())


def test_numbers() -> None:
    for number, name in (
        (0, "CHOWN"),
        (21, "SYS_ADMIN"),
        (27, "MKNOD"),
        (40, "CHECKPOINT_RESTORE"),
    ):
        assert CAPABILITIES[number] == f"CAP_{name}"

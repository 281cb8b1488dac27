"""What the heap does with freed memory, seen by its page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lamina.linux.syscalls import LIBC

pytestmark = pytest.mark.skipif(not hasattr(LIBC, "mallopt"), reason="the C library has no mallopt")

_COUNT_FAULTS = """
import resource
from lamina.linux.heap import keep_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(64):
        first, second = bytearray(1 << 20), bytearray(1 << 20)
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def _faults(call: str) -> int:
    program = _COUNT_FAULTS.format(call=call)
    return int(subprocess.check_output([sys.executable, "-c", program]))


def test_freed_buffers_are_used_again_without_page_faults() -> None:
    assert _faults("assert keep_freed_memory()") * 10 < _faults("")

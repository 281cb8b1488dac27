"""What is promised for kernels other than this one, on Debian's, each in a machine of its own.

6.1 cannot mount EROFS from files.  6.12 can; until 6.12.85 it shows zeros where a part of a read
from FUSE fails, so there incomplete images must not be mounted that way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.block.disk import DiskView
from lamina.serve.nbd.connection import Served
from lamina.serve.nbd.listening import listen_unix
from lamina.serve.nbd.negotiation import Export
from lamina.serve.nbd.server import NbdServer
from tests.support.guest import nbd_disk, require_guest, run_in_guest
from tests.support.guest_kernel import Kernel, require_kernel_package
from tests.support.native_images import MemorySource, open_bootstrap
from tests.support.serving import sample_image

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.guest,
    # A guest is emulated, and on a busy machine by a part of a processor.
    pytest.mark.timeout(1200),
]

CHECKS = Path(__file__).parents[1] / "support" / "in_guest.py"
MENDED = (6, 12, 85)
"""Since then EROFS fails a read from a file that came to an end too early."""


TREE = (
    "check_auto_chooses_the_device",
    "check_a_dead_source_is_an_error_and_then_recovers",
    "check_the_tree_is_the_image",
)
PARTS = "check_a_read_that_fails_in_part_shows_no_zeros"
REFUSED = "check_the_kernel_mount_is_refused_where_auto_avoids_it"
COMPLETE = "check_a_complete_image_is_mounted_directly"
USERS = "check_users_mount_the_tree"
DISK = "check_a_disk_over_nbd_is_the_image"
KILLED = "check_a_killed_service_is_an_error"


@contextmanager
def serving_sample() -> Iterator[tuple[Path, MemorySource]]:
    """The sample image as a disk over NBD: its socket, and what is fetched for it."""
    built = sample_image()
    source = MemorySource(built)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "image.boot"
        path.write_bytes(built.bootstrap)
        with open_bootstrap(path, source, store=Path(name) / "store") as image:
            disk = DiskView(image)
            served = Served(disk, Export(b"", disk.size_bytes))
            with NbdServer(listen_unix(f"{name}/socket"), served) as server:
                server.start()
                yield Path(name) / "socket", source


def check(kernel: Kernel, lazy: str, resident: str, *names: str) -> None:
    with serving_sample() as (socket, source):
        run = run_in_guest(kernel, CHECKS, lazy, resident, *names, devices=nbd_disk(socket))
    print(run.output)
    assert run.exit_code == 0, f"Linux {kernel.release}:\n{run.output}"
    passed = [line for line in run.output.splitlines() if line.startswith("ok ")]
    assert [line.split()[1] for line in passed] == list(names), run.output
    # Nothing but the guest has read the disk.
    assert bool(source.requests) == (DISK in names)


def test_a_kernel_without_mounts_of_files_gets_the_tree_by_fuse() -> None:
    require_guest()
    check(
        require_kernel_package("6.1"),
        "fuse",
        "fuse",
        *TREE,
        PARTS,
        REFUSED,
        COMPLETE,
        USERS,
        DISK,
        KILLED,
    )


def test_blobs_by_fuse_under_the_kernels_tree() -> None:
    require_guest()
    kernel = require_kernel_package("6.12")
    assert kernel.version >= MENDED
    check(kernel, "fuse-blob", "fuse-blob", *TREE, PARTS, COMPLETE, DISK, KILLED)


def test_a_kernel_that_hides_failed_reads_gets_the_tree_by_fuse() -> None:
    require_guest()
    kernel = require_kernel_package("6.12", oldest=True)
    if kernel.version >= MENDED:
        pytest.skip(f"the oldest kernel to be had is {kernel.release}, which has the mend")
    check(kernel, "fuse", "fuse-blob", TREE[0], PARTS, REFUSED, COMPLETE)

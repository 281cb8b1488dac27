"""A virtual machine with another kernel, in which one Python script runs as root.

QEMU emulates the processor, so no KVM is needed.  The kernel is one of Debian's packages for
clouds, unpacked and not installed.  Everything else is an initial RAM disk in two parts: the
running interpreter with the dependencies of the project, made once; and the modules of the kernel
and the project with its test helpers, made for each boot.  There is no network, and an ext4 disk
of its own at ``/disk``, since the kernel mounts EROFS from files of real file systems only.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from tests.support.cache import cache_folder, exclusive
from tests.support.guest_files import Cpio, add_interpreter, add_project
from tests.support.guest_kernel import Kernel, read_module
from tests.support.tools import find_program, missing

ROOT: Final = Path(__file__).resolve().parents[2]
QEMU: Final = "qemu-system-x86_64"
PROGRAMS: Final = (QEMU, "mkfs.ext4", "fusermount3", "dmsetup")
DEADLINE_S: Final = 500
BOOTS: Final = 3
"""How often is tried to boot: on a busy machine a kernel may find its emulated clock wrong."""
DISK_BYTES: Final = 256 << 20
MODULES: Final = (
    *("virtio_pci", "virtio_blk", "ext4", "fuse", "virtiofs", "erofs", "overlay"),
    # Nobody in the guest loads what dm-crypt and dm-verity ask for.
    *("dm_verity", "dm_crypt", "xts", "ecb", "sha256_generic", "aes_generic"),
)
"""What the guest needs where the kernel does not have it built in, with all they depend on."""

_COMMAND_LINE: Final = (
    "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off nokaslr no_timer_check"
)
_BEGUN: Final = b"begun\n"
_END: Final = b"\nexit code "


class GuestRun(NamedTuple):
    """What a script did: its exit code, what it printed, and what the kernel said."""

    exit_code: int
    output: str
    console: str


def require_guest() -> None:
    """Skip where no guest can be booted."""
    if platform.machine() != "x86_64":
        missing(f"the kernels of the guests are for x86_64, this is {platform.machine()}")
    absent = [name for name in PROGRAMS if find_program(name) is None]
    if absent:
        missing(f"not installed: {', '.join(absent)} (make test installs them on Debian as root)")


def run_in_guest(
    kernel: Kernel,
    script: Path,
    *arguments: str,
    devices: Sequence[str | Path] = (),
    modules: Sequence[str] = (),
    more: Callable[[Cpio], None] | None = None,
) -> GuestRun:
    """Boot ``kernel``, run a script of the repository in it, and return when the guest is off.

    *devices* are options of QEMU; disks among them are the guest's ``/dev/vdb`` and following.
    *modules* are loaded besides, and *more* adds to the guest's files.

    Raises RuntimeError with the console if the guest ends, or hangs, before the script has.
    """
    with tempfile.TemporaryDirectory(prefix="lamina-guest-") as name:
        folder = Path(name)
        words = [f"/project/{script.relative_to(ROOT)}", *arguments]
        with (folder / "initrd").open("wb") as file:
            _write_initrd(file, kernel, words, (*MODULES, *modules), more)
        _make_disk(folder / "disk")
        for _ in range(BOOTS):
            console, output = _boot(folder, kernel, devices)
            if output.startswith(_BEGUN):
                break
    text, separator, code = output.removeprefix(_BEGUN).rpartition(_END)
    if not separator or not code.strip().lstrip(b"-").isdigit():
        raise RuntimeError(
            f"the guest with {kernel.release} ended before its script:\n"
            f"{output.decode(errors='replace')}\n{console.decode(errors='replace')}"
        )
    return GuestRun(int(code), text.decode(errors="replace"), console.decode(errors="replace"))


def nbd_disk(socket: Path, node: str = "nbd") -> list[str]:
    """Return the options for a disk that an NBD server has on a unix socket."""
    options = f"driver=nbd,server.type=unix,server.path={socket},reconnect-delay=60"
    return disk_device(f"{options},read-only=on", node)


def disk_device(options: str, node: str) -> list[str]:
    """Return the options for a disk of QEMU's block layer."""
    return ["-blockdev", f"{options},node-name={node}", "-device", f"virtio-blk-pci,drive={node}"]


def _boot(folder: Path, kernel: Kernel, devices: Sequence[str | Path]) -> tuple[bytes, bytes]:
    # One thread for both processors: with two, a kernel that patches its code is now and then seen
    # half patched by the other one, and panics.
    command = [
        find_program(QEMU) or QEMU,
        *("-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1536"),
        *("-nodefaults", "-no-reboot", "-display", "none"),
        *("-kernel", kernel.image, "-initrd", folder / "initrd", "-append", _COMMAND_LINE),
        *("-serial", f"file:{folder}/console", "-serial", f"file:{folder}/output"),
        *("-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={folder}/disk"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]
    command += devices
    try:
        done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired as error:
        console = (folder / "console").read_text(errors="replace")
        raise RuntimeError(f"a guest took more than {DEADLINE_S} s:\n{console}") from error
    console, output = (
        (folder / part).read_bytes() if (folder / part).exists() else b""
        for part in ("console", "output")
    )
    return console + done.stderr, output.replace(b"\r\n", b"\n")


def _make_disk(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    program = find_program("mkfs.ext4") or "mkfs.ext4"
    subprocess.run([program, "-q", "-E", "lazy_itable_init=1", path], check=True)


def _write_initrd(
    file: BinaryIO,
    kernel: Kernel,
    words: Sequence[str],
    modules: Sequence[str],
    more: Callable[[Cpio], None] | None,
) -> None:
    """The kernel unpacks several archives behind each other into one tree."""
    file.write(_interpreter().read_bytes())
    archive = Cpio(file)
    # In the order in which they are to be loaded.
    for number, module in enumerate(kernel.modules(modules)):
        name = f"{number:02}-{module.name.removesuffix('.xz')}"
        archive.add(f"modules/{name}", read_module(module))
    if more is not None:
        more(archive)
    add_project(archive, ROOT)
    archive.add("command", "\0".join(words).encode())
    archive.finish()


def _interpreter() -> Path:
    """The part that does not change, from the cache if what makes it is the same."""
    makers = ("tests/support/guest_files.py", "tests/support/guest_init.py", "pyproject.toml")
    state = hashlib.sha256(f"{sys.executable} {sys.version}".encode())
    for maker in makers:
        state.update((ROOT / maker).read_bytes())
    folder = cache_folder("guests")
    path = folder / f"python-{state.hexdigest()[:16]}.cpio"
    with exclusive(folder / ".lock"):
        if not path.exists():
            for older in folder.glob("python-*"):
                older.unlink()
            staging = path.with_suffix(".new")
            with staging.open("wb") as file:
                archive = Cpio(file)
                add_interpreter(archive)
                archive.finish()
            staging.rename(path)
    return path

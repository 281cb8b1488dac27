"""A resident image over NBD, against nbdkit's file plugin: ``python bench/nbd.py``.

Both serve the same bytes on a unix socket; one client of this program reads from them by turns.
Prints MB/s and the ratio of the medians for sequential reads of 256 KiB and random ones of 4 KiB, 1
and 16 in flight; that of the fastest rounds, which a busy machine disturbs least; and how much
processor time each server took for a request, in the median and at least.  Then how much longer the
first read of a range that is not on the node takes than a request for it, of the same registry on
this machine and by turns.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.native_images import MemorySource, build_image, open_bootstrap, push_image
from tests.support.registry_server import start_registry

from lamina.block.disk import DiskView
from lamina.wire import nbd
from lamina.wire.nbd_reply import CHUNK, CHUNK_DONE

KIB = 1 << 10
PIECE_BYTES = 128 * KIB
ASKED_BYTES = 5 * PIECE_BYTES
"""About what is asked for at once where a request takes a millisecond: the piece and some ahead."""
SIZE_BYTES = 192 << 20
CASES = {
    "256 KiB in order, 1 in flight": (256 * KIB, 1, False),
    "256 KiB in order, 16 in flight": (256 * KIB, 16, False),
    "4 KiB at random, 1 in flight": (4 * KIB, 1, True),
    "4 KiB at random, 16 in flight": (4 * KIB, 16, True),
}


class Client:
    """A client with structured replies; the least that a client can do."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.server = Path(f"/proc/{struct.unpack_from('i', credentials)[0]}")
        self.buffer = memoryview(bytearray(1 << 20))
        self._take(nbd.GREETING.size)
        self.sock.sendall(nbd.CLIENT_FLAGS.pack(3))
        self._option(nbd.Option.STRUCTURED_REPLY, b"")
        self._option(nbd.Option.GO, struct.pack(">IH", 0, 0))

    def _take(self, size_bytes: int) -> memoryview:
        view = self.buffer[:size_bytes]
        self.sock.recv_into(view, size_bytes, socket.MSG_WAITALL)
        return view

    def _option(self, option: int, data: bytes) -> None:
        self.sock.sendall(nbd.OPTION.pack(nbd.OPTION_MAGIC, option, len(data)) + data)
        while True:
            _, _, kind, size = nbd.OPTION_REPLY.unpack(self._take(nbd.OPTION_REPLY.size))
            self._take(size)
            if kind != nbd.OptionAnswer.INFO:
                assert kind == nbd.OptionAnswer.ACK, hex(kind)
                return

    def read(self, offsets: list[int], size_bytes: int, in_flight: int) -> float:
        """Read all; returns bytes a second."""
        begun = time.perf_counter()
        waiting = iter(offsets)
        left = 0
        for offset in [next(waiting) for _ in range(in_flight)]:
            self._ask(offset, size_bytes)
            left += 1
        while left:
            done = False
            while not done:
                _, flags, _, _, size = CHUNK.unpack(self._take(CHUNK.size))
                self._take(size)
                done = bool(flags & CHUNK_DONE)
            left -= 1
            following = next(waiting, None)
            if following is not None:
                self._ask(following, size_bytes)
                left += 1
        return len(offsets) * size_bytes / (time.perf_counter() - begun)

    def server_cpu_s(self) -> float:
        """Return the processor time of the server's threads so far."""
        tasks = self.server.glob("task/*/schedstat")
        return sum(int(each.read_text().split()[0]) for each in tasks) / 1e9

    def _ask(self, offset: int, size_bytes: int) -> None:
        self.sock.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, 0, 1, offset, size_bytes))


def first_reads(folder: Path, count: int) -> tuple[float, float]:
    """Return the median seconds of reads of what is missing, and of requests for as much."""
    content = random.Random(3).randbytes(1 << 20)
    files = {b"%d" % n: content[n:] + content[:n] for n in range(count)}
    built = build_image(files, chunk_size=PIECE_BYTES)
    push_image(built, folder / "pieces")
    with start_registry(folder / "registry") as registry, ExitStack() as stack:
        reference = f"docker://{registry.host}/pieces:1"
        lamina = [sys.executable, "-m", "lamina"]
        copy = [*lamina, "copy", "-q", "--plain-http", f"oci:{folder}/pieces:latest", reference]
        subprocess.run(copy, check=True)
        store = ["--store", str(folder / "empty"), "--profile", "none", "--plain-http"]
        path = folder / "missing"
        serve = [*lamina, "serve", "nbd", "-q", *store, reference, "--socket", str(path)]
        client = Client(stack.enter_context(server(path, *serve)))
        stack.callback(client.sock.close)
        blob = max(built.blobs, key=lambda each: len(each.data))
        address = f"/v2/pieces/blobs/sha256:{hashlib.sha256(blob.data).hexdigest()}"
        connection = stack.enter_context(closing(http.client.HTTPConnection(registry.host)))
        # One place in each file, so that nothing is read ahead; the first are for what is opened.
        places = random.Random(4).sample(range(2, count - 1), count - 4)
        mine, theirs = [], []
        for number in places:
            begun = time.perf_counter()
            client.read([number << 20], 4 * KIB, 1)
            mine.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            first = number << 20
            wanted = {"Range": f"bytes={first}-{first + ASKED_BYTES - 1}"}
            connection.request("GET", address, headers=wanted)
            assert len(connection.getresponse().read()) == ASKED_BYTES
            theirs.append(time.perf_counter() - begun)
    return statistics.median(mine[10:]), statistics.median(theirs[10:])


@contextmanager
def server(path: Path, *command: str | Path) -> Iterator[Path]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not path.is_socket():
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--missing", type=int, default=110, help="reads of what is missing")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    with tempfile.TemporaryDirectory(prefix="lamina-nbd-") as name:
        folder = Path(name)
        content = random.Random(1).randbytes(1 << 20)
        files = {b"%d" % n: content[n:] + content[:n] for n in range(SIZE_BYTES >> 20)}
        built = build_image(files, chunk_size=1 << 20)
        push_image(built, folder / "layout")
        path = folder / "image.boot"
        path.write_bytes(built.bootstrap)
        source = MemorySource(built)
        with open_bootstrap(path, source, store=folder / "other") as image:
            disk = DiskView(image)
            with (folder / "raw").open("wb") as file:
                buffer = bytearray(8 << 20)
                for offset in range(0, disk.size_bytes, len(buffer)):
                    file.write(buffer[: disk.read_into(offset, buffer)])
        store = ["--store", str(folder / "store")]
        lamina = [sys.executable, "-m", "lamina"]
        reference = f"oci:{folder}/layout:latest"
        subprocess.run([*lamina, "pull", "-q", *store, reference], check=True)
        mine, theirs = folder / "mine", folder / "theirs"
        serve = [*lamina, "serve", "nbd", "-q", *store, reference, "--socket", str(mine)]
        with (
            server(mine, *serve) as first,
            server(theirs, "nbdkit", "-f", "-r", "-U", theirs, "file", folder / "raw") as second,
        ):
            clients = {"lamina": Client(first), "nbdkit": Client(second)}
            for case, (size, in_flight, at_random) in CASES.items():
                offsets = list(range(1 << 20, SIZE_BYTES - size, size))
                if at_random:
                    offsets = random.Random(2).sample(offsets, 5000)
                found: dict[str, list[float]] = {name: [] for name in clients}
                cpu_us: dict[str, list[float]] = {name: [] for name in clients}
                for _ in range(rounds + 1):
                    for who, client in clients.items():
                        before_s = client.server_cpu_s()
                        found[who].append(client.read(offsets, size, in_flight))
                        took_s = client.server_cpu_s() - before_s
                        cpu_us[who].append(took_s * 1e6 / len(offsets))
                # The first round is for the page cache.
                medians = {who: statistics.median(each[1:]) for who, each in found.items()}
                shown = "  ".join(f"{who} {each / 1e6:.0f} MB/s" for who, each in medians.items())
                best = {who: max(each[1:]) for who, each in found.items()}
                print(
                    f"{case}: {shown}  ratio {medians['lamina'] / medians['nbdkit']:.2f}, "
                    f"of the fastest rounds {best['lamina'] / best['nbdkit']:.2f}"
                )
                taken = "  ".join(
                    f"{who} {statistics.median(each[1:]):.1f} ({min(each[1:]):.1f})"
                    for who, each in cpu_us.items()
                )
                print(f"  processor time, µs a request: {taken}")
            # nbdkit does not end before its clients have.
            for client in clients.values():
                client.sock.close()
        mine_s, theirs_s = first_reads(folder, arguments.missing)
        print(
            f"first read of 4 KiB: {mine_s * 1e3:.2f} ms, a request for {ASKED_BYTES // KIB} "
            f"KiB: {theirs_s * 1e3:.2f} ms, more by {(mine_s - theirs_s) * 1e3:.2f} ms"
        )


if __name__ == "__main__":
    main()

"""Many containers on a node at a time while its snapshotter is killed again and again."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.support.node import CommandError, Node, is_away
from tests.support.node_images import FOREVER, SUM, NodeImages

Result = TypeVar("Result")

KINDS = ("plain", "indexed", "native")


class Stress(NamedTuple):
    """How many containers there are, how many commands are on their way at a time, and after how
    many of them the snapshotter is killed.
    """

    containers: int
    at_a_time: int
    kill_every: int


def check_many(
    made: Node, images: NodeImages, restart: Callable[[], None], stress: Stress
) -> dict[str, int]:
    """Start containers of three images, write to them, stop and remove them.

    A start that failed is tried again, as a kubelet does, and none fails then; every byte is right,
    and no mount, snapshot, file of the store, descriptor or process is left.  Returns what the
    snapshotter and the mount service take with all containers running, in KiB.
    """
    for kind in KINDS:
        made.crictl("pull", images.reference(kind))
    pod = made.run_pod("pod")
    numbers = range(stress.containers)

    def start(number: int) -> str:
        return _start(made, pod, number, images.reference(KINDS[number % len(KINDS)]))

    def end(container: str) -> list[str]:
        script = "md5sum < big; hostname > big; echo right > big; cat big"
        said = made.crictl("exec", container, "sh", "-c", script).splitlines()
        made.remove_container(container)
        return said

    # What one container of each image leaves behind is no leak.
    for container in [start(-1 - number) for number in range(len(KINDS))]:
        end(container)
    before = _held(made), store_files(made)
    containers = _under_kills(made, restart, stress, [lambda n=n: start(n) for n in numbers])
    made.wait_until_connected()
    memory_kib = {name: _status_kib(pid) for name, pid in _processes(made).items()}
    said = _under_kills(made, restart, stress, [lambda c=c: end(c) for c in containers])
    assert said == [[f"{SUM}  -", "right"]] * stress.containers
    made.wait_until_connected()
    made.remove_pods()
    _wait_until_released(made, before[0])
    assert store_files(made) == before[1]
    made.remove_images()
    made.wait_until_clean()
    return memory_kib


def _start(made: Node, pod: str, number: int, image: str) -> str:
    for attempt in range(50):
        container = made.create(pod, f"c{number}-{attempt}", image, *FOREVER)
        try:
            made.crictl("start", container)
        except CommandError as error:
            if not is_away(error):
                raise
        else:
            return container
    raise AssertionError(f"container {number} does not start")


def _under_kills(
    made: Node, restart: Callable[[], None], stress: Stress, work: Sequence[Callable[[], Result]]
) -> list[Result]:
    finished = threading.Semaphore(0)

    def done(each: Callable[[], Result]) -> Result:
        try:
            return each()
        finally:
            finished.release()

    with ThreadPoolExecutor(stress.at_a_time) as workers:
        futures = [workers.submit(done, each) for each in work]
        for _ in range(len(work) // stress.kill_every - 1):
            for _ in range(stress.kill_every):
                assert finished.acquire(timeout=250)
            made.stop("snapshotter", 9)
            restart()
        return [each.result() for each in futures]


def _processes(made: Node) -> dict[str, int]:
    status = json.loads(made.lamina("service", "status", "--json"))
    return {"snapshotter": made.pid("snapshotter"), **status["pids"]}


def _held(made: Node) -> dict[str, int]:
    """Return how many descriptors the mount service has, by process; the snapshotter is another one
    after each kill.
    """
    pids = _processes(made)
    del pids["snapshotter"]
    return {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()}


def _wait_until_released(made: Node, before: Mapping[str, int]) -> None:
    """Wait until the service has no more descriptors than before: idle connections end."""
    deadline_s = time.monotonic() + 60
    while True:
        more = {name: count - before[name] for name, count in _held(made).items()}
        if all(count <= 0 for count in more.values()):
            return
        assert time.monotonic() < deadline_s, more
        time.sleep(0.1)


def store_files(made: Node) -> set[str]:
    """Return the files of the node store."""
    store = made.folder / "store"
    return {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}


def _status_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))

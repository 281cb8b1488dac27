"""A source that says nothing: on each device, and whoever serves, every reader hears of it."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.serve.mounts import unmount
from tests.support.native_images import BuiltImage, build_image, image_files
from tests.support.serving import is_mounted, start
from tests.support.tools import require_erofs, require_kernel, require_root

pytestmark = pytest.mark.kernel

DEVICES = ("fanotify", "fuse-blob", "fuse")
BLOBS = 3
WAYS = ("service", "foreground")
READERS = 40
"""More than any device has threads."""
NEAR = 4 * BLOBS
"""Files that may come with the first ones, unasked."""
FILE_BYTES = 256 * 1024

READ_ALL = """\
import concurrent.futures, json, sys

def read(path):
    try:
        with open(path, "rb", 0) as file:
            return len(file.read(1))
    except OSError as error:
        return -error.errno

with concurrent.futures.ThreadPoolExecutor(len(sys.argv)) as pool:
    print(json.dumps(list(pool.map(read, sys.argv[1:]))))
"""


def patiently(read: Callable[[], bytes]) -> bytes:
    """Read again while a source that is not silent is too slow for the short deadline."""
    limit = time.monotonic() + 120
    while True:
        try:
            return read()
        except OSError:
            if time.monotonic() > limit:
                raise


def make_image() -> BuiltImage:
    files = {
        b"file-%03d" % number: random.Random(number).randbytes(FILE_BYTES)
        for number in range(NEAR + READERS)
    }
    return build_image(files, chunk_size=FILE_BYTES, blob_count=BLOBS)


@pytest.fixture(params=[(device, way) for device in DEVICES for way in WAYS], ids="-".join)
def mounted(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, BuiltImage]]:
    """An image that nothing has come of, and of which nothing comes while FOLDER/silent exists."""
    require_root()
    device, way = request.param
    if device != "fuse":
        require_erofs()
        require_kernel(6, 14 if device == "fanotify" else 12, device)
    monkeypatch.setenv("LAMINA_RETRY", "deadline_s=0.5,attempt_s=0.1,max_pause_s=0.1")
    image = make_image()
    image_files(tmp_path / "image", image)
    (tmp_path / "mnt").mkdir()
    start(
        tmp_path / "image",
        tmp_path / "mnt",
        tmp_path / "store",
        device,
        foreground=way == "foreground",
    )
    # The chunk table of each blob is here now.
    for name in sorted(image.contents)[:BLOBS]:
        path = tmp_path / "mnt" / os.fsdecode(name)
        assert patiently(path.read_bytes) == image.contents[name]
    (tmp_path / "image" / "silent").touch()
    yield tmp_path, image
    (tmp_path / "image" / "silent").unlink(missing_ok=True)
    if is_mounted(tmp_path / "mnt"):
        unmount(tmp_path / "mnt", lazy=True)


def test_every_reader_gets_an_error_and_the_mount_goes_on(
    mounted: tuple[Path, BuiltImage],
) -> None:
    folder, image = mounted
    contents = sorted(image.contents)[NEAR:]
    names = [folder / "mnt" / os.fsdecode(name) for name in contents]
    # Another process: one that waits for ever can be killed.
    command = [sys.executable, "-c", READ_ALL, *map(str, names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    codes = {-code for code in json.loads(done.stdout)}
    assert codes <= {errno.EIO, errno.ETIMEDOUT}, "a read ended well, of a source that is silent"
    (folder / "image" / "silent").unlink()
    for name, path in zip(contents, names, strict=True):
        assert patiently(path.read_bytes) == image.contents[name]

"""Whether somebody looks after a container, told by a lock."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from lamina.containers.claim import CLAIM_FILE, Claim, ClaimSeen


def test_nobody_has_claimed_it(tmp_path: Path) -> None:
    assert ClaimSeen.of(str(tmp_path)) is None


def test_held_until_the_last_holder_ends(tmp_path: Path) -> None:
    claim = Claim(str(tmp_path), "/folder")
    pid = os.fork()
    if pid == 0:
        try:
            claim.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    seen = ClaimSeen.of(str(tmp_path))
    assert seen is not None
    with seen:
        assert seen.is_held()
        assert (seen.folder, seen.exit_code) == ("/folder", None)
        codes: list[int | None] = []

        def wait() -> None:
            seen.wait()
            codes.append(seen.exit_code)

        waiter = threading.Thread(target=wait)
        waiter.start()
        (tmp_path / CLAIM_FILE).unlink()
        claim.end(7)
        waiter.join(60)
        assert codes == [7]
        assert not seen.is_held()


def test_killed_without_a_word(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            Claim(str(tmp_path), "/folder")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    seen = ClaimSeen.of(str(tmp_path))
    assert seen is not None
    with seen:
        assert not seen.is_held()
        assert seen.exit_code is None


def test_words_that_are_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / CLAIM_FILE).write_bytes(b'\xff\n[1]\n{"folder": "/x"}\n{"exit_code": "many"}\n')
    seen = ClaimSeen.of(str(tmp_path))
    assert seen is not None
    with seen:
        assert (seen.folder, seen.exit_code) == ("/x", None)

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from lamina.errors import Error, UsageError
from lamina.trust.crypto.secret import Secret, read_passphrase, take_from_environment

VALUE = b"correct horse battery"


def test_it_shows_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(VALUE)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", f"{secret!s} {secret!r}"]
    shown.append(repr({"key": [secret]}))
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("lamina.trust").warning("key %s", secret)
    shown.append(caplog.text)
    for text in shown:
        assert "correct" not in text
    with pytest.raises(TypeError):
        json.dumps({"key": secret})
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        hash(secret)
    assert not hasattr(secret, "__dict__")


def test_it_compares_and_closes() -> None:
    secret = Secret(VALUE)
    assert secret == Secret(VALUE)
    assert secret != Secret(b"other")
    assert secret != VALUE
    assert len(secret) == len(VALUE)
    buffer = secret._buffer
    secret.close()
    secret.close()
    assert buffer == bytes(len(VALUE))
    assert secret.reveal() == b""


def test_the_environment_does_not_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMINA_TEST_PASSWORD", "tea")
    assert take_from_environment("LAMINA_TEST_PASSWORD") == Secret(b"tea")
    assert "LAMINA_TEST_PASSWORD" not in os.environ
    seen = subprocess.run(["env"], capture_output=True, check=True).stdout
    assert b"LAMINA_TEST_PASSWORD" not in seen
    assert take_from_environment("LAMINA_TEST_PASSWORD") is None


def test_the_memory_of_the_environment_does_not_keep_it() -> None:
    """What ``/proc/PID/environ`` shows is what the process was started with."""
    code = (
        "from lamina.trust.crypto.secret import take_from_environment\n"
        "def shown(): return open('/proc/self/environ', 'rb').read()\n"
        "assert b'hunter2' in shown()\n"
        "assert take_from_environment('LAMINA_TEST_PASSWORD').reveal() == b'hunter2'\n"
        "assert take_from_environment('LAMINA_TEST_PASSWORD') is None\n"
        "assert b'hunter2' not in shown()\n"
        "assert b'LAMINA_TEST_AFTER=kept' in shown()\n"
    )
    environment = {**os.environ, "LAMINA_TEST_PASSWORD": "hunter2", "LAMINA_TEST_AFTER": "kept"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_passphrase_of_a_descriptor_leaves_what_follows() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as file:
        os.write(writer, b"tea\nthe value")
        os.close(writer)
        assert read_passphrase(f"fd={reader}") == Secret(b"tea")
        assert file.read() == b"the value"


def test_passphrases_of_all_sources(tmp_path: Path) -> None:
    file = tmp_path / "pw"
    file.write_bytes(b"first line\r\nsecond\n")
    assert read_passphrase("pass=a=b c") == Secret(b"a=b c")
    assert read_passphrase(f"file={file}") == Secret(b"first line")
    with file.open("rb") as opened:
        assert read_passphrase(f"fd={opened.fileno()}") == Secret(b"first line")
    for text in ("hunter2", "password=hunter2", "file=/no/hunter2", "fd=hunter2"):
        with pytest.raises(UsageError) as caught:
            read_passphrase(text)
        if not text.startswith("file="):
            assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    file.write_bytes(b"x" * 5000)
    with pytest.raises(Error):
        read_passphrase(f"file={file}")


def test_a_process_with_keys_is_not_dumped() -> None:
    """In a process of its own, because it cannot be taken back by every user."""
    code = (
        "from lamina.linux.memory import forbid_core_dumps, lock_memory\n"
        "import ctypes\n"
        "forbid_core_dumps()\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), lock_memory(bytearray(100)))\n"
        "print(open('/proc/self/status').read())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    dumpable, locked = done.stdout.split()[:2]
    assert dumpable == "0"
    locked_kib = next(line for line in done.stdout.splitlines() if line.startswith("VmLck:"))
    assert (locked == "True") == (int(locked_kib.split()[1]) > 0)


def test_locking_nothing_is_fine() -> None:
    from lamina.linux.memory import lock_memory

    assert lock_memory(bytearray())

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from tests.support.disk import disk_usage
from tests.support.logs import restored_log

from lamina.cli import main


def test_a_command_line_in_this_process_takes_no_log_away(caplog: pytest.LogCaptureFixture) -> None:
    """Other tests look for what the library logs, in whatever order they run."""
    with restored_log():
        assert main(["--quiet", "version"]) == 0
        logging.getLogger("lamina").warning("first")
    logging.getLogger("lamina").warning("second")
    assert caplog.messages == ["second"]


def test_files_that_go_while_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").write_bytes(b"x")
    (tmp_path / "gone").write_bytes(b"x")
    alone = (tmp_path / "there").stat().st_blocks * 512
    stat = os.stat

    def late(path: str) -> os.stat_result:
        if path.endswith("gone"):
            os.unlink(path)
        return stat(path)

    # Not for longer: what tidies up after the test asks too.
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", late)
        found = disk_usage(tmp_path)
    assert found == alone

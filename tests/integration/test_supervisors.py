"""What the page for administrators says of supervisors, and files for other programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.cli.self_tests import tiny_layout
from lamina.serve.service.control import service_facts
from tests.support.serving import is_mounted
from tests.support.shell import Shell
from tests.support.tools import require_root, require_tool

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "administrate.md"
STOP = {
    "runit": ("sv", "-w", "60", "force-stop"),
    "s6": ("s6-svc", "-wd", "-T", "60000", "-d"),
}
LEAVE = {"runit": ("sv", "exit"), "s6": ("s6-svc", "-xd")}
BEGIN = {"runit": "runsv", "s6": "s6-supervise"}


def script(name: str) -> str:
    """The ``run`` that the page has for a supervisor."""
    found = re.search(rf"^{name}, .*?```bash\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@contextmanager
def supervised(name: str, folder: Path) -> Iterator[None]:
    """A supervisor whose service is the one of the page."""
    folder.mkdir()
    (folder / "run").write_text(script(name))
    (folder / "run").chmod(0o755)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen([BEGIN[name], folder], env=environment) as supervisor:
        try:
            yield
        finally:
            subprocess.run([*LEAVE[name], folder], check=False)
            supervisor.wait(60)


@pytest.mark.kernel
@pytest.mark.tools
@pytest.mark.parametrize("name", ["runit", "s6"])
def test_supervisors_run_and_stop_the_service(name: str, tmp_path: Path) -> None:
    require_root()
    require_tool(BEGIN[name], STOP[name][0])
    if name == "s6":
        require_tool("execlineb")
    lamina = Shell(tmp_path)
    tiny_layout(tmp_path / "source")
    lamina("convert", "oci:source:tiny", "oci:native:tiny")
    (tmp_path / "mnt").mkdir()
    with supervised(name, tmp_path / name):
        while service_facts() is None:
            time.sleep(0.05)
        lamina("mount", "--device", "fuse", "oci:native:tiny", "mnt")
        facts = service_facts()
        assert facts is not None and facts.mounts == 1 and not facts.managed
        # Its child is the process that stays, whatever is killed beside it.
        subprocess.run([*STOP[name], tmp_path / name], check=True)
        assert not is_mounted(tmp_path / "mnt")
        assert service_facts() is None


@pytest.mark.tools
def test_systemd_and_logrotate_understand_their_files(tmp_path: Path) -> None:
    require_tool("systemd-analyze", "logrotate")
    program = shutil.which("true")
    script = ROOT / "distribution" / "shared_files.py"
    subprocess.run([sys.executable, script, tmp_path, program], check=True)
    units = sorted((tmp_path / "lib/systemd/system").iterdir())
    assert [unit.name for unit in units] == ["lamina-snapshotter.service", "lamina.service"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    snippet = tmp_path / "etc/logrotate.d/lamina"
    done = subprocess.run(["logrotate", "--debug", snippet], capture_output=True, text=True)
    assert done.returncode == 0 and "error" not in done.stderr, done.stderr
    assert "/run/lamina/service.log" in done.stderr


@pytest.mark.kernel
@pytest.mark.tools
def test_logrotate_cuts_the_log_of_a_service_that_goes_on(tmp_path: Path) -> None:
    require_root()
    require_tool("logrotate")
    lamina = Shell(tmp_path)
    tiny_layout(tmp_path / "source")
    lamina("convert", "oci:source:tiny", "oci:native:tiny")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    lamina("mount", "--device", "fuse", "oci:native:tiny", "one")
    facts = service_facts()
    assert facts is not None and facts.log is not None
    log = Path(facts.log)
    log.chmod(0o600)
    text = (ROOT / "distribution" / "lamina.logrotate").read_text()
    (tmp_path / "snippet").write_text(text.replace("/run/lamina/service.log", str(log)))
    (tmp_path / "snippet").chmod(0o644)
    before = log.read_text()
    state = tmp_path / "state"
    rotate = ["logrotate", "--force", "--state", state, tmp_path / "snippet"]
    subprocess.run(rotate, check=True)
    assert f"{tmp_path}/one is mounted" in before and log.read_text() == ""
    lamina("mount", "--device", "fuse", "oci:native:tiny", "two")
    # From its beginning: no hole where the old text was.
    assert f"{tmp_path}/two is mounted" in log.read_text() and "\0" not in log.read_text()
    lamina("umount", "--all")

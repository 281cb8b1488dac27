"""The page about key brokers is run as it stands, from a key to a container that got it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import tools
from tests.support.registry_server import RegistryServer

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "key-broker.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WAIT = """
for _ in $(seq 600); do (echo > /dev/tcp/127.0.0.1/PORT) 2> /dev/null && break; sleep 0.1; done
"""


@pytest.mark.tools
@pytest.mark.kernel
@pytest.mark.usefixtures("as_root")
def test_the_page_runs_in_its_order(
    tmp_path: Path, registry: RegistryServer, oci_image: Callable[[str], Path]
) -> None:
    tools.require_tool("jq", "runc")
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 4
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    text = "".join(block + (WAIT if "kbs serve" in block else "") for block in blocks)
    # The container's output is told from that of the commands before it.
    text = text.replace("lamina run", "echo -- ; lamina run")
    for said, here in (
        ("8443", port),
        ("PORT", port),
        (" app:1 ", f" oci:{oci_image('minbase')}:latest "),
        ("localhost:5000/app", f"{registry.host}/{tmp_path.name}"),
        ("&\n", "& echo $! > pid\n"),
    ):
        assert said in text
        text = text.replace(said, here)
    programs = os.path.dirname(sys.executable)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LAMINA_STORE": str(tmp_path / "store"),
        "COSIGN_PASSWORD": "of the owner",
    }
    trap = "trap 'kill $(cat pid) || true' EXIT\n"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", trap + text],
        cwd=tmp_path,
        env=environment,
        input="a passphrase\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ID=debian" in done.stdout.rpartition("--\n")[2]
    audit = [
        json.loads(line) for line in (tmp_path / "broker/audit.jsonl").read_text().splitlines()
    ]
    assert [line["event"] for line in audit][-1] == "resource"
    assert not any(line["result"] == "refused" for line in audit), audit

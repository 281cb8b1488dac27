"""A Debian package built of the source distribution by Debian's tools, in a tree of Debian 12: it
installs, works, goes on over an upgrade, and removes itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lamina.cli.self_tests import tiny_layout
from lamina.version import VERSION
from tests.support import images
from tests.support.tools import require_root, require_tool

ROOT = Path(__file__).parents[2]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "LC_ALL": "C.UTF-8"}

pytestmark = [pytest.mark.package, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, source_distribution: Path) -> Path:
    """The folder of all that ``dpkg-buildpackage`` makes."""
    require_tool("dpkg-buildpackage", "dh", "unshare")
    folder = tmp_path_factory.mktemp("deb")
    script = ROOT / "distribution" / "build-deb"
    done = subprocess.run(
        [script, source_distribution, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": PATH},
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return folder


@contextlib.contextmanager
def tree(name: str, built: Path, folder: Path) -> Iterator[Path]:
    """A tree of Debian that may be written to, with the package in it as ``/deb``."""
    require_root()
    for part in ("upper", "work", "root"):
        (folder / part).mkdir()
    layers = [f"lowerdir={images.root_folder(name)}"]
    layers += [f"{part}dir={folder / part}" for part in ("upper", "work")]
    root = folder / "root"
    mount = ["mount", "-t", "overlay", "overlay", "-o", ",".join(layers), root]
    subprocess.run(mount, check=True)
    try:
        (package,) = built.glob("lamina_*.deb")
        shutil.copy(package, root / "deb")
        yield root
    finally:
        subprocess.run(["umount", "-l", root], check=True)


@pytest.fixture
def machine(built: Path, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """``machine(script)`` runs a shell script in a Debian tree that has the package as ``/deb``;
    the tree stays from one call to the next, mounts and processes do not.
    """
    # A tree with Python, which is all that the package depends on.
    with tree("python", built, tmp_path) as root:

        def run(script: str) -> str:
            around = (
                f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev &&"
                f"mount -t tmpfs tmpfs {root}/run && mkdir -p {root}/mnt && chroot {root} sh -euc"
            )
            command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]
            done = subprocess.run(
                [*command, f'{around} "$0"', script],
                capture_output=True,
                text=True,
                env=ENVIRONMENT,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        yield run


LIST = "find / -xdev -path /var/lib/dpkg/info -prune -o -path /var/log -prune -o -print | sort"


def test_it_is_removed_without_a_trace(machine: Callable[[str], str]) -> None:
    said = machine(
        f"""
        {LIST} >/run/before
        dpkg -i /deb
        lamina version
        lamina self-test
        test -s /usr/share/man/man1/lamina-run.1.gz
        mkdir -p /var/lib/lamina && touch /var/lib/lamina/blob
        dpkg -r lamina
        test -e /var/lib/lamina/blob && test -e /etc/logrotate.d/lamina
        dpkg -P lamina
        {LIST} >/run/after
        diff /run/before /run/after && echo the same
        """
    )
    assert f"lamina {VERSION}" in said
    assert re.search(r"ok +image round trip", said)
    assert said.endswith("the same\n")


def test_what_containers_wrote_stays(machine: Callable[[str], str]) -> None:
    said = machine(
        """
        dpkg -i /deb
        mkdir -p /var/lib/lamina/containers/x
        dpkg -P lamina
        test -d /var/lib/lamina/containers/x
        """
    )
    assert "/var/lib/lamina stays" in said


def test_mounts_go_on_over_an_upgrade_and_keep_the_package(
    machine: Callable[[str], str], tmp_path: Path
) -> None:
    files = tiny_layout(tmp_path / "root" / "source")
    name, data = next((name, data) for name, data in files.items() if data)
    said = machine(
        f"""
        dpkg -i /deb
        lamina convert oci:/source:tiny oci:/image:tiny
        lamina mount --device fuse oci:/image:tiny /mnt
        lamina service status
        exec 9</mnt/{name}
        dpkg -i /deb
        lamina service status
        wc -c <&9
        dpkg -r lamina 2>&1 && exit 1
        exec 9<&-
        dpkg -r lamina
        mountpoint -q /mnt && exit 1
        pgrep -l lamina && exit 1
        true
        """
    )
    first, second = re.findall(r"processes: +(.*)", said)
    assert set(re.findall(r"\d+", first)).isdisjoint(re.findall(r"\d+", second))
    assert f"\n{len(data)}\n" in said
    assert "images are mounted and in use" in said


BOOTED = """
[Unit]
After=basic.target
SuccessAction=poweroff
FailureAction=poweroff
[Service]
Type=oneshot
ExecStart=/bin/bash -eux /script
StandardOutput=file:/said
StandardError=file:/said
"""


def boot(root: Path, script: str) -> str:
    """Boot the tree with systemd in a container, where a script runs and ends it; return what it
    says.
    """
    (root / "script").write_text(script)
    units = root / "etc/systemd/system"
    (units / "script.service").write_text(BOOTED)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/script.service").symlink_to(units / "script.service")
    container = ["systemd-nspawn", "--register=no", "--keep-unit", "--bind=/dev/fuse"]
    done = subprocess.run(
        [*container, "--directory", root, "--boot"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    said = root / "said"
    assert said.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return said.read_text()


def test_systemd_keeps_mounts_over_all_but_stop(built: Path, tmp_path: Path) -> None:
    """What docs/how-to/administrate.md says of ``systemctl``, with its unit and a real systemd."""
    require_tool("systemd-nspawn")
    with tree("systemd", built, tmp_path) as root:
        tiny_layout(root / "source")
        subprocess.run(["chroot", root, "dpkg", "-i", "/deb"], check=True, env=ENVIRONMENT)
        said = boot(
            root,
            """
            set -o pipefail
            # A service that is asked while it begins anew answers a moment later.
            served() { until lamina service status --json; do sleep 0.1; done; cat /mnt/etc/hello; }
            lamina convert oci:/source:tiny oci:/image:tiny
            systemctl start lamina
            lamina mount --device fuse oci:/image:tiny /mnt
            served
            systemctl reload lamina
            served
            systemctl restart lamina
            served
            systemctl kill --signal=KILL lamina
            served
            systemctl stop lamina
            ! mountpoint /mnt
            ! lamina service status
            journalctl --no-pager -u lamina
            : the end
            """,
        )
    assert said.endswith("+ : the end\n"), said
    told = [json.loads(line) for line in said.splitlines() if line.startswith('{"pids"')]
    assert [each["mounts"] for each in told] == [1] * 4
    pids = [pid for each in told for pid in each["pids"].values()]
    assert len(set(pids)) == 4 * 3, "each time all processes are others"
    assert all(each["managed"] for each in told)


def test_lintian_has_nothing_to_say(built: Path) -> None:
    require_tool("lintian")
    (changes,) = built.glob("*.changes")
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", changes],
        capture_output=True,
        text=True,
        env={"PATH": PATH, "HOME": "/root"},
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_source_package_has_all_that_the_build_needs(built: Path) -> None:
    names = {path.name for path in built.iterdir()}
    assert {f"lamina_{VERSION}.orig.tar.gz", f"lamina_{VERSION}.orig-wheels.tar.gz"} <= names
    (info,) = built.glob("*.dsc")
    assert f"Version: {VERSION}-1\n" in info.read_text()

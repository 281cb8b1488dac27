"""What people type who know docker, nerdctl, skopeo and pathlib: sixty lines, and ten of Python.

At least forty-five of the sixty, and nine of the ten, work as they are; the rest say what to use.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.support import tools
from tests.support.registry_server import RegistryServer
from tests.support.shell import Shell

pytestmark = [pytest.mark.tools, pytest.mark.kernel]


class Guess(NamedTuple):
    """What is typed, and what is in the answer; or in the hint, if it does not work."""

    typed: str
    answer: str
    works: bool = True


RUNS: Final = (
    Guess("run --rm HOST/app cat /etc/os-release", "Debian"),
    Guess("run --rm -i HOST/app cat", ""),
    Guess("run --rm -e A=b HOST/app env", "A=b"),
    Guess("run --rm --env-file env HOST/app env", "FROM=file"),
    Guess("run --rm -v ./data:/data:ro HOST/app cat /data/f", "from the host"),
    Guess("run --rm -v /etc:/host-etc:ro,z HOST/app ls /host-etc", "passwd"),
    Guess("run --rm --mount type=bind,source=/etc,target=/x,readonly HOST/app ls /x", "passwd"),
    Guess("run --rm -w /usr/lib HOST/app pwd", "/usr/lib"),
    Guess("run --rm -u nobody HOST/app id -un", "nobody"),
    Guess("run --rm --user 1000:1000 --group-add 44 HOST/app id -G", "1000 44"),
    Guess("run --rm --entrypoint /bin/echo HOST/app hello", "hello"),
    Guess("run --rm --network host HOST/app true", ""),
    Guess("run --rm --net=none HOST/app ls /sys/class/net", "lo"),
    Guess("run --rm -m 256m --cpus 1 HOST/app true", ""),
    Guess("run --rm --pids-limit 100 HOST/app true", ""),
    Guess("run --rm --init HOST/app true", ""),
    Guess("run --rm --read-only --tmpfs /tmp HOST/app touch /tmp/x", ""),
    Guess("run --rm --cap-drop ALL --security-opt no-new-privileges HOST/app true", ""),
    Guess("run --rm --ulimit nofile=99 HOST/app sh -c 'ulimit -n'", "99"),
    Guess("run --rm --add-host db:10.0.0.1 HOST/app cat /etc/hosts", "10.0.0.1\tdb"),
    Guess("run --rm -h box HOST/app hostname", "box"),
    Guess("run --rm --shm-size 128m HOST/app df -m /dev/shm", "128"),
    Guess("run --rm --pull always --platform linux/amd64 HOST/app true", ""),
    Guess("run --rm --device /dev/fuse HOST/app ls /dev/fuse", "/dev/fuse"),
    Guess("run --rm --label a=b --name one HOST/app true", ""),
)
LIFE: Final = (
    Guess("run -d --name web -l tier=web HOST/app sh -c 'echo here; sleep 99'", "web"),
    Guess("ps", "web"),
    Guess("ps -aq", "web"),
    Guess("ps --filter label=tier=web", "running"),
    Guess("exec web cat /etc/os-release", "Debian"),
    Guess("exec -i -u nobody web id -un", "nobody"),
    Guess("logs web", "here"),
    Guess("logs --tail 1 -t web", "here"),
    Guess("kill -s CONT web", "web"),
    Guess("stop -t 1 web", "web"),
    Guess("wait web", "137"),
    Guess("logs -f web", "here"),
    Guess("rm web", "removed web"),
    Guess("run -dit --rm --name two HOST/app bash", "two"),
    Guess("rm -f two", "removed two"),
)
IMAGES: Final = (
    Guess("pull HOST/app", "sha256:"),
    Guess("images", "HOST/app:latest"),
    Guess("inspect HOST/app", "linux/amd64"),
    Guess("inspect --raw docker://HOST/app", '"schemaVersion"'),
    Guess("copy docker://HOST/app:latest oci:copied:latest", "sha256:"),
    Guess("copy --all oci:copied:latest docker://HOST/copy:latest", "sha256:"),
    Guess("rm HOST/app", "removed sha256:"),
    Guess("version", "lamina"),
)
REFUSED: Final = (
    Guess("run -p 8080:80 HOST/app", "--network host", works=False),
    Guess("run --privileged HOST/app", "--cap-add ALL", works=False),
    Guess("run -d --restart always HOST/app", "systemd", works=False),
    Guess("run --network bridge HOST/app", "--network host", works=False),
    Guess("run --gpus all HOST/app", "--device /dev/nvidia0", works=False),
    Guess("run -v data:/data HOST/app", "./data", works=False),
    Guess("rmi HOST/app", "`lamina rm IMAGE`", works=False),
    Guess("push HOST/app", "`lamina copy SRC docker://", works=False),
    Guess("login HOST", "docker login", works=False),
    Guess("tag HOST/app HOST/b", "`lamina copy SRC DST`", works=False),
    Guess("inspect --format '{{.Id}}' HOST/app", "jq", works=False),
    Guess("copy --dest-tls-verify=false oci:a docker://HOST/b", "--no-tls-verify", works=False),
)
COMMANDS: Final = (*RUNS, *LIFE, *IMAGES, *REFUSED)
LINES: Final = (
    Guess("image.read_text('/etc/os-release')", "Debian"),
    Guess("(image / 'etc' / 'os-release').read_bytes().decode()", "Debian"),
    Guess("image.open('/etc/os-release').read().decode()", "Debian"),
    Guess("image.exists('/etc/passwd'), image.is_dir('/etc')", "True True"),
    Guess("sorted(p.name for p in (image / 'etc').iterdir())", "'os-release'"),
    Guess("[str(p) for p in image.glob('/etc/os-*')]", "/etc/os-release"),
    Guess("(image / 'etc/passwd').stat().st_size > 100", "True"),
    Guess("image.joinpath('etc', 'os-release').resolve()", "/usr/lib/os-release"),
    Guess("fsspec.open('lamina://REFERENCE//etc/os-release', 'rt').open().read()", "Debian"),
    Guess("image.namelist()", "walk() yields all paths", works=False),
)


class Node(NamedTuple):
    """A shell, and a registry with the image ``app``."""

    shell: Shell
    host: str


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory,
    registry: RegistryServer,
    oci_image: Callable[[str], Path],
) -> Iterator[Node]:
    tools.require_root()
    tools.require_tool("runc")
    folder = tmp_path_factory.mktemp("guesses")
    shell = Shell(folder)
    (folder / "data").mkdir()
    (folder / "data" / "f").write_text("from the host\n")
    (folder / "env").write_text("# a comment\nFROM=file\n")
    host = f"{registry.host}/guesses"
    shell("-q", "convert", f"oci:{oci_image('minbase')}:latest", f"docker://{host}/app:latest")
    yield Node(shell, host)


def test_most_guesses_are_right() -> None:
    assert len(COMMANDS) == 60
    assert sum(guess.works for guess in COMMANDS) >= 45
    assert len(LINES) == 10
    assert sum(guess.works for guess in LINES) >= 9


GROUPS: Final = {"run": RUNS, "life": LIFE, "images": IMAGES, "refused": REFUSED}


@pytest.mark.parametrize("guesses", GROUPS.values(), ids=GROUPS)
def test_commands(node: Node, guesses: tuple[Guess, ...]) -> None:
    for guess in guesses:
        words = shlex.split(guess.typed.replace("HOST", node.host))
        done = subprocess.run(
            node.shell.words(*words),
            cwd=node.shell.folder,
            env=node.shell.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        assert (done.returncode == 0) is guess.works, (guess.typed, done.stderr)
        assert "unrecognized arguments" not in done.stderr
        said = done.stdout + done.stderr if guess.works else done.stderr.partition("hint: ")[2]
        assert guess.answer.replace("HOST", node.host) in said, guess.typed


@pytest.mark.parametrize("guess", LINES, ids=lambda guess: guess.typed[:40])
def test_lines(node: Node, guess: Guess, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    reference = f"{node.host}/app:latest"
    program = (
        f"import lamina, fsspec\n"
        f"with lamina.open({reference!r}) as image:\n"
        f"    print({guess.typed.replace('REFERENCE', reference)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**node.shell.environment, "LAMINA_STORE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) is guess.works, done.stderr
    assert guess.answer in (done.stdout if guess.works else done.stderr.splitlines()[-1])


def test_every_foreign_verb_is_foreign() -> None:
    from lamina.cli.foreign_verbs import FOREIGN_VERBS
    from lamina.cli.verbs import find_verb

    assert not [word for word in FOREIGN_VERBS if find_verb(word) is not None]

"""Completion: the scripts parse, and bash, zsh and fish offer the right words."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.tools import require_tool

from lamina.cli import main
from lamina.cli.completion.bash import bash_script
from lamina.cli.completion.command_model import top_options, verb_models
from lamina.cli.completion.fish import fish_script
from lamina.cli.completion.zsh import zsh_script
from lamina.cli.verbs import VERBS

NAMES = [verb.name for verb in VERBS]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    words, top = verb_models(), top_options()
    (folder / "bash").write_text(bash_script(words, top))
    (folder / "zsh").write_text(zsh_script(words, top))
    (folder / "fish").write_text(fish_script(words, top))
    (folder / "lamina").write_text(
        "#!/bin/sh\necho /mnt/one\necho /mnt/two\necho '/data/$(touch expanded)'\n"
    )
    (folder / "lamina").chmod(0o755)
    here = folder / "here"
    (here / "images").mkdir(parents=True)
    (here / "images" / "node").mkdir()
    (here / "app.tar").write_text("")
    (here / "my lay" / "sub").mkdir(parents=True)
    (here / "work@home").mkdir()
    return folder


def bash_words(scripts: Path, line: str) -> list[str]:
    """What bash would insert for the last word of a line, as readline calls it."""
    program = r"""
    source "$1"
    COMP_LINE=$2 COMP_POINT=${#2}
    # readline's own words: cut at blanks and at the word breaks = and :
    read -ra COMP_WORDS <<<"$(sed 's/[:=]/ & /g' <<<"$2")"
    [[ $2 == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _lamina lamina
    printf '%s\n' "${COMPREPLY[@]}"
    """
    bash = require_tool("bash")[0]
    done = subprocess.run(
        [bash, "-c", program, "bash", str(scripts / "bash"), line],
        capture_output=True,
        text=True,
        cwd=scripts / "here",
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_scripts_parse(scripts: Path) -> None:
    bash = require_tool("bash")[0]
    done = subprocess.run([bash, "-n", scripts / "bash"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lamina ", {*NAMES, "help"}),
        ("lamina mou", {"mount", "mounts"}),
        ("lamina --js", {"--json"}),
        ("lamina --json co", {"convert", "copy", "completion", "coverage"}),
        ("lamina help conv", {"convert"}),
        ("lamina completion ", {"bash", "zsh", "fish"}),
        ("lamina completion z", {"zsh"}),
        ("lamina ls --rec", {"--recursive"}),
        ("lamina convert --compressor ", {"zstd", "lz4", "none"}),
        ("lamina convert --compressor l", {"lz4"}),
        ("lamina convert --compressor=l", {"lz4"}),
        ("lamina --log-format text convert --dig", {"--digester"}),
        ("lamina convert a b --digester s", {"sha256"}),
        ("lamina run --network ", {"host", "none"}),
        ("lamina run --env-file a", {"app.tar"}),
        ("lamina run -v i", {"images"}),
        ("lamina mount --device f", {"fanotify", "fuse-blob", "fuse"}),
        ("lamina mount image im", {"images"}),
        ("lamina umount /mnt/t", {"/mnt/two"}),
        ("lamina umount /mnt/two /mnt/o", {"/mnt/one"}),
        ("lamina umount /data", {"/data/$(touch", "expanded)"}),
        ("lamina ls doc", {"docker://", "docker-archive:"}),
        ("lamina ls oci:im", {"images"}),
        ("lamina copy oci:images/n", {"images/node"}),
        ("lamina copy a docker-archive:a", {"app.tar"}),
        ("lamina cat image -", {"--json"}),
        ("lamina version x", set()),
    ],
)
def test_bash(scripts: Path, line: str, expected: set[str]) -> None:
    found = set(bash_words(scripts, line))
    assert not (scripts / "here" / "expanded").exists(), "a name of a folder was run"
    if line.endswith(" -"):
        assert expected <= found
    else:
        assert found == expected


def typed(scripts: Path, keys: str) -> str:
    """The arguments that `lamina` gets when an interactive bash reads these keys and Enter."""
    bash = require_tool("bash")[0]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(scripts / "here")
        os.environ.update(TERM="dumb", PS1="", INPUTRC="/dev/null")
        os.execv(bash, ["bash", "--norc", "--noprofile", "-i"])
    setup = f"stty -echo; source {scripts}/bash; lamina() {{ printf '<%s>' \"$@\"; }}; echo READY\n"
    os.write(terminal, f"{setup}{keys}\nexit\n".encode())
    said = b""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 65536):
            said += data
    os.close(terminal)
    os.waitpid(pid, 0)
    return said.decode().rpartition("READY")[2]


@pytest.mark.parametrize(
    ("keys", "arguments"),
    [
        ("lamina ls ./my\t", "<ls><./my lay/>"),
        ("lamina ls oci:my\t", "<ls><oci:my lay/>"),
        ("lamina ls oci:my\\ lay/s\t", "<ls><oci:my lay/sub/>"),
        ('lamina ls "oci:my\t', "<ls><oci:my lay>"),
        ('lamina ls oci:"my\t', "<ls><oci:my lay/>"),
        ("lamina ls 'oci:my\t", "<ls><oci:my lay>"),
        ("lamina ls oci:work@\t", "<ls><oci:work@home>"),
        ("lamina mount oci:my\\ lay im\t", "<mount><oci:my lay><images/>"),
        ("lamina convert --compressor=z\t a", "<convert><--compressor=zstd><a>"),
    ],
)
def test_what_an_interactive_bash_makes_of_it(scripts: Path, keys: str, arguments: str) -> None:
    assert arguments in typed(scripts, keys)


def test_zsh(scripts: Path) -> None:
    zsh = require_tool("zsh")[0]
    done = subprocess.run([zsh, "-n", scripts / "zsh"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # _arguments is replaced by one that shows what it was asked.
    program = r"""
    compdef() { :; }; source $1
    _describe() { print -rl -- ${(P)4}; }
    _lamina_verbs | cut -d: -f1
    """
    done = subprocess.run(
        [zsh, "-fc", program, "zsh", scripts / "zsh"], capture_output=True, text=True
    )
    assert (done.stdout.split(), done.stderr) == (NAMES, "")


def test_fish(scripts: Path) -> None:
    fish = require_tool("fish")[0]
    program = "source $argv[1]; complete -C $argv[2]"

    def words(line: str) -> set[str]:
        done = subprocess.run(
            [fish, "--no-config", "-c", program, scripts / "fish", line],
            capture_output=True,
            text=True,
            cwd=scripts / "here",
            env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "HOME": str(scripts)},
        )
        assert (done.returncode, done.stderr) == (0, "")
        return {line.partition("\t")[0] for line in done.stdout.splitlines()}

    assert words("lamina ") == {*NAMES}
    assert words("lamina completion ") == {"bash", "zsh", "fish"}
    assert words("lamina convert --compressor ") == {"zstd", "lz4", "none"}
    assert words("lamina umount /mnt/t") == {"/mnt/two"}
    assert "--recursive" in words("lamina ls --")
    assert words("lamina ls oci:im") == {"oci:images/"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_in_every_script(scripts: Path, shell: str) -> None:
    text = (scripts / shell).read_text()
    for verb in verb_models():
        assert verb.name in text
        for option in verb.options:
            for name in option.names:
                assert (
                    f"-l {name[2:]}" if name[:2] == "--" else f"-s {name[1:]}"
                ) in text or name in text


def test_the_verb_prints_the_script(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    assert text == (scripts / "bash").read_text()
    assert main(["completion", "bash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": "bash", "script": text}
    assert main(["completion", "csh"]) == 2


def test_scripts_do_not_depend_on_the_hash_seed() -> None:
    def script(seed: str) -> str:
        command = [sys.executable, "-m", "lamina", "completion", "zsh"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, check=True
        ).stdout

    assert script("1") == script("2")

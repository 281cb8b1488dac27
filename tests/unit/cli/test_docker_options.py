"""Each option of ``docker run`` is there, or refused with what to use instead."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lamina.cli import docker_options
from lamina.cli.container_options import container_options
from lamina.cli.dispatch import verb_parser
from lamina.cli.parser import Parser
from lamina.cli.verbs import find_verb
from lamina.errors import Error, UnsupportedError, UsageError

FILE = Path(__file__).parents[3] / "docs" / "reference" / "docker-options.md"
ALL = {*docker_options.REFUSED, *docker_options.SUPPORTED}
FLAGS = re.compile(r"^\s+(?:-(\w), )?(--[a-z0-9-]+)( \S+)?", re.MULTILINE)


@pytest.fixture(scope="module")
def parser() -> Parser:
    verb = find_verb("run")
    assert verb is not None
    return verb_parser(verb)


def test_the_table_is_up_to_date() -> None:
    assert docker_options.main(["--check", str(FILE)]) == 0, (
        "run python -m lamina.cli.docker_options docs/reference/docker-options.md"
    )


def test_every_option_is_in_it_once() -> None:
    assert not docker_options.REFUSED.keys() & docker_options.SUPPORTED.keys()
    assert len(ALL) == 104


def test_docker_knows_no_other() -> None:
    if shutil.which("docker") is None:
        pytest.skip("docker's command line is not here to compare with")
    done = subprocess.run(["docker", "run", "--help"], capture_output=True, text=True)
    theirs = {found[1] for found in FLAGS.findall(done.stdout)}
    assert len(theirs) > 90
    assert theirs - {"--help"} <= ALL


@pytest.mark.parametrize("name", sorted(docker_options.SUPPORTED))
def test_what_is_supported_is_an_option(parser: Parser, name: str) -> None:
    assert name in parser.option_names
    assert name not in parser.refused


@pytest.mark.parametrize("name", sorted(docker_options.refused_options()))
def test_what_is_refused_says_what_to_use(parser: Parser, name: str) -> None:
    hint = docker_options.refused_options()[name]
    for words in ([name, "x", "image"], [f"{name}=x", "image"], ["--rm", name, "image"]):
        with pytest.raises(UnsupportedError, match=f"has no option {name}") as caught:
            parser.parse(words)
        assert caught.value.hint == hint


def test_letters_together(parser: Parser) -> None:
    with pytest.raises(UnsupportedError, match="no option -p"):
        parser.parse(["-itp", "80:80", "image"])
    with pytest.raises(UnsupportedError, match="no option -p"):
        parser.parse(["-p8080:80", "image"])
    # A value is not looked into, nor the command.
    assert parser.parse(["--name", "web", "image", "-p", "80"]).command == ["-p", "80"]


def test_an_option_that_nobody_has(parser: Parser) -> None:
    with pytest.raises(UsageError, match="has no option --worksdir") as caught:
        parser.parse(["--worksdir", "image"])
    assert "did you mean --workdir?" in str(caught.value.hint)


def test_truth_as_go_has_it(parser: Parser) -> None:
    args = parser.parse(["--rm=true", "--init=1", "--read-only=false", "image"])
    assert (args.rm, args.init, args.read_only) == (True, True, False)


@pytest.mark.parametrize(
    "words",
    [
        ["--network", "bridge"],
        ["--net=mine"],
        ["--pid", "container:web"],
        ["--ipc=shareable"],
        ["--security-opt", "seccomp=/profile.json"],
        ["-v", "/:/x:rshared"],
        ["-v", "data:/x"],
        ["--mount", "type=volume,source=data,target=/x"],
        ["--mount", "type=bind,source=/,target=/x,what=1"],
        ["--mount", "type=image,source=x,target=/x"],
        ["--tmpfs", "/x:what"],
        ["--cpus", "0"],
        ["--memory", "much"],
        ["--memory-swap", "1g"],
        ["--add-host", "name"],
        ["--stop-signal", "NONSENSE"],
        ["--device", "nonsense"],
        ["--device", "/dev/null:x:y:z"],
        ["--label", "=x"],
    ],
    ids=" ".join,
)
def test_values_that_are_refused(parser: Parser, words: list[str]) -> None:
    with pytest.raises((UsageError, UnsupportedError)) as caught:
        container_options(parser.parse([*words, "image"]))
    assert isinstance(caught.value, Error)
    assert caught.value.hint or "is not supported" in str(caught.value)


def test_values(parser: Parser) -> None:
    words = ["-m", "1.5g", "--cpus=.5", "--stop-signal", "9", "--stop-timeout", "3", "-h", "box"]
    words += ["--mount", "type=bind,src=/,dst=/x,readonly,bind-propagation=rslave"]
    found = container_options(parser.parse([*words, "-v", "/:/y:ro,Z", "image"]))
    assert found.limits.memory_bytes == 3 << 29
    assert found.limits.cpu_quota_us == 50_000
    assert (found.stop_signal, found.stop_timeout_s, found.hostname) == ("SIGKILL", 3.0, "box")
    # More than poll(2) can wait is for ever.
    for_ever = container_options(parser.parse(["--stop-timeout", "99999999999", "image"]))
    assert for_ever.stop_timeout_s == -1.0
    assert [(v.target, v.read_only, v.follows_host) for v in found.volumes] == [
        ("/y", True, False),
        ("/x", True, True),
    ]


def test_an_environment_file_is_no_shell_script(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\nexport B=2\n")
    with pytest.raises(UsageError, match=r"line 2 of .*'export B' has a space") as caught:
        container_options(parser.parse(["--env-file", str(tmp_path / "env"), "image"]))
    assert caught.value.hint == "write NAME=VALUE, without `export`"

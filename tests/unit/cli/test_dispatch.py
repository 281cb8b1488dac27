"""The frame: which arguments reach which verb, what is imported, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from lamina import errors
from lamina.cli import console, dispatch, exit_codes, main
from lamina.cli.help_text import HelpPage
from lamina.cli.options import add_output_options, add_store_option
from lamina.cli.parser import Parser, count_leading_options
from lamina.cli.verbs import VERBS, find_verb

SOURCE = Path(__file__).parents[3] / "src"
PLAIN_PAGE = HelpPage("Words.")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}


def lamina(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lamina", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)


@pytest.fixture(autouse=True)
def plain_story() -> None:
    console.set_up()


@pytest.fixture
def fake_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Namespace], int]], None]:
    """Makes `lamina version` do what the test wants."""

    def install(run: Callable[[Namespace], int], page: HelpPage = PLAIN_PAGE) -> None:
        def add_arguments(parser: Parser) -> None:
            parser.add_argument("words", nargs="*")
            add_store_option(parser)
            add_output_options(parser)

        module = SimpleNamespace(HELP=page, add_arguments=add_arguments, run=run)
        monkeypatch.setattr(dispatch, "load_verb", lambda verb: module)

    return install


def modules_of(*arguments: str) -> set[str]:
    """The modules that a command imports beyond those of bare Python."""
    code = (
        "import sys; bare = set(sys.modules);"
        "from lamina.cli import main; code = main(sys.argv[1:]);"
        "print(*(set(sys.modules) - bare), sep='\\n', file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-1000:]
    return set(done.stderr.split())


def test_help_imports_only_the_frame() -> None:
    modules = modules_of("--help")
    mine = {name for name in modules if name.startswith("lamina")}
    assert mine <= {
        "lamina",
        "lamina.cli",
        "lamina.cli.dispatch",
        "lamina.cli.exit_codes",
        "lamina.cli.help_text",
        "lamina.cli.output",
        "lamina.cli.parser",
        "lamina.cli.verbs",
        "lamina.errors",
        "lamina.version",
    }
    heavy = {
        "msgspec",
        "urllib3",
        "rich",
        "json",
        "logging",
        "zstandard",
        "blake3",
        "subprocess",
        "socket",
    }
    assert not modules & heavy
    assert len(modules) <= 45


def test_a_verb_imports_no_other_verb() -> None:
    verbs = {name for name in modules_of("version") if name.startswith("lamina.cli.verbs.")}
    assert verbs == {"lamina.cli.verbs.version"}


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_every_verb_has_a_whole_page(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: lamina {verb} [OPTIONS]")
    assert "Examples:" in text
    assert (
        max(len(line) for line in text.splitlines() if not line.startswith(("  $", "Usage"))) <= 96
    )
    entry = find_verb(verb)
    assert entry is not None
    parser = dispatch.verb_parser(entry)
    for action in parser._actions:
        assert action.help, f"{verb}: {action.option_strings or action.dest} has no help"
    for other in parser.page.see_also:
        assert find_verb(other), f"{verb} refers to {other}"
    for command, _ in parser.page.examples:
        assert "lamina " in command


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_examples_parse(verb: str) -> None:
    import shlex

    entry = find_verb(verb)
    assert entry is not None
    parser = dispatch.verb_parser(entry)
    for command, _ in parser.page.examples:
        words = shlex.split(
            command.replace("<(", "").replace(")", "") if "<(" in command else command
        )
        start = words.index("lamina")
        end = next(
            (i for i, word in enumerate(words) if i > start and word in ("|", ">", "&&", "&")), None
        )
        if words[start + 1] == verb:
            parser.parse(words[start + 2 : end])


def test_top_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb.name} " in text for verb in VERBS)
    assert main(["help"]) == 0
    assert capsys.readouterr().out == text


def test_help_verb_is_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "ls"]) == 0
    first = capsys.readouterr().out
    assert main(["ls", "-h"]) == 0
    assert capsys.readouterr().out == first


def test_nothing_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: lamina VERB")


def test_unknown_verb_has_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mout", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "lamina: there is no verb 'mout'\nhint: did you mean `lamina mount`?\n"


def test_unknown_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--bogus"]) == 2
    assert "--bogus" in capsys.readouterr().err


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--verb"]) == 2


@pytest.mark.parametrize("arguments", [["-V"], ["--version"], ["version"], ["-q", "version", "-v"]])
def test_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from lamina.version import VERSION

    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"lamina {VERSION} ")


def test_options_before_the_verb_are_as_after_it(fake_verb: Callable[..., None]) -> None:
    seen: list[Namespace] = []
    fake_verb(lambda args: seen.append(args) or 0)
    options = ["--json", "-q", "-vv", "--log-format", "json", "--store", "/x"]
    assert main([*options, "version", "a", "b"]) == 0
    assert main(["version", "a", *options, "b"]) == 0
    assert main(["version", "a", "b", "--log-format=json", "--store=/x", "-vqv", "--json"]) == 0
    assert seen[0] == seen[1] == seen[2]
    assert (seen[0].words, seen[0].store, seen[0].verbose) == (["a", "b"], "/x", 2)


def all_errors() -> list[type[errors.Error]]:
    return [
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, errors.Error)
    ]


@pytest.mark.parametrize("family", all_errors())
def test_each_family_has_its_exit_code(
    family: type[errors.Error], fake_verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        raise family("the thing broke", hint="mend it")

    fake_verb(run)
    assert main(["version"]) == family.exit_code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "lamina: the thing broke\nhint: mend it\n")
    assert main(["version", "--json"]) == family.exit_code
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "error": {
            "kind": family.__name__,
            "message": "the thing broke",
            "hint": "mend it",
            "exit_code": family.exit_code,
        }
    }
    assert err == "lamina: the thing broke\nhint: mend it\n"


def test_exit_code_table_is_complete_and_unambiguous() -> None:
    table = exit_codes.exit_codes()
    codes = [row.code for row in table]
    assert codes == sorted(set(codes))
    assert {row.error for row in table if row.error} == {family.__name__ for family in all_errors()}
    assert all(row.meaning and row.meaning.endswith(".") for row in table)


def test_system_errors_are_sentences(
    fake_verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        raise PermissionError(13, "Permission denied", "/etc/x")

    fake_verb(run)
    assert main(["version"]) == 1
    assert capsys.readouterr().err == (
        "lamina: /etc/x: Permission denied\n"
        "hint: it is not for this user: become one who may use it, or choose another place\n"
    )


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lay", "oci:lay names it"),
        ("lay:tag", "oci:lay:tag names it"),
        ("app.tar", "docker-archive:app.tar names it"),
        ("oci:lay", "mend it"),
        ("absent", "mend it"),
    ],
)
def test_a_local_image_without_its_transport(
    word: str,
    hint: str,
    fake_verb: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(args: Namespace) -> int:
        raise errors.FetchError("the registry is away", hint="mend it")

    (tmp_path / "lay").mkdir()
    (tmp_path / "lay" / "oci-layout").touch()
    (tmp_path / "app.tar").touch()
    monkeypatch.chdir(tmp_path)
    fake_verb(run)
    assert main(["version", word]) == 5
    assert capsys.readouterr().err.endswith(f"{hint}\n")


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.mkdir(sys.argv[1]); os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])\n"
        "from lamina.cli import main; sys.exit(main(['mount', 'oci:/absent', 'folder']))"
    )
    command = [sys.executable, "-c", code, f"{tmp_path}/gone"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    message = "lamina: the folder that this runs in is gone\nhint: cd to another\n"
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.parametrize("verb", ["mount", "run"])
def test_a_limit_of_what_is_not_done(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--limit-rate", "1M", "oci:/absent", "folder"]) in (2, 125)
    assert "hint: add --complete" in capsys.readouterr().err


def test_a_defect_is_told_as_one(
    fake_verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        raise ZeroDivisionError("oh")

    fake_verb(run)
    assert main(["version"]) == exit_codes.INTERNAL
    err = capsys.readouterr().err
    assert err.startswith("lamina: defect: ZeroDivisionError: oh\nhint: ")
    assert "Traceback" not in err
    assert main(["version", "-v"]) == exit_codes.INTERNAL
    assert "Traceback" in capsys.readouterr().err


def test_failure_code_of_a_page_replaces_all(
    fake_verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        raise errors.FetchError("no")

    fake_verb(run, HelpPage("Words.", failure_code=125))
    assert main(["version"]) == 125
    assert main(["version", "--nonsense"]) == 125


def test_interrupt(fake_verb: Callable[..., None]) -> None:
    def run(args: Namespace) -> int:
        raise KeyboardInterrupt

    fake_verb(run)
    assert main(["version"]) == 130


def test_errors_as_json_lines(
    fake_verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        console.info("on my way", step=1)
        raise errors.FormatError("bad", hint="better")

    fake_verb(run)
    assert main(["version", "--log-format", "json"]) == 3
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "on my way"),
        ("error", "bad"),
    ]
    assert lines[0]["step"] == 1
    assert lines[1]["hint"] == "better"


def test_a_closed_pipe_is_no_noise() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lamina", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def start_with_closed(*fds: int, arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    def close() -> None:
        for fd in fds:
            os.close(fd)

    command = [sys.executable, "-m", "lamina", *arguments]
    return subprocess.run(command, capture_output=True, env=ENVIRONMENT, preexec_fn=close)


@pytest.mark.parametrize("fds", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(fds: tuple[int, ...]) -> None:
    done = start_with_closed(*fds, arguments=["version"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"" if 1 in fds else b"lamina ")
    done = start_with_closed(*fds, arguments=["nosuch"])
    assert done.returncode == 2
    assert done.stderr.startswith(b"" if 2 in fds else b"lamina: there is no verb")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["version", "--help"], ["version", "--json"]])
def test_a_full_standard_output(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "lamina", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT)
    message = b"lamina: cannot write to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_a_full_standard_error_changes_no_exit_code() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "lamina", "ls", "oci:/absent"]
        assert subprocess.run(command, stderr=full, env=ENVIRONMENT).returncode == 7


def test_an_interrupt_while_modules_are_imported() -> None:
    code = (
        "import sys, lamina.cli.streams as streams\n"
        "def interrupted(): raise KeyboardInterrupt\n"
        "streams.prepare_streams = interrupted\n"
        "from lamina.cli import entry; entry()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (130, b"")


def test_an_interrupt_while_msgspec_is_imported() -> None:
    code = """
import builtins, os, signal, sys
real, counting = builtins.__import__, []
def interrupting(name, *rest, **more):
    if name.endswith("_core") or counting:
        counting.append(name)
        if len(counting) == 5:
            os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest, **more)
builtins.__import__ = interrupting
sys.argv = ["lamina", "inspect", sys.argv[1]]
from lamina.cli import entry
entry()
"""
    command = [sys.executable, "-c", code, "oci:/absent"]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_text_that_the_encoding_lacks(tmp_path: Path) -> None:
    (tmp_path / "ünï").write_text("")
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "lamina", "ls", f"{tmp_path}"]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, rb"\xfcn\xef" + b"\n", b"")


def test_messages_are_safe_on_a_terminal(
    fake_verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        raise errors.Error("no \x1b[31m\udcff", hint="try\r\x9b1m\nthis")

    fake_verb(run)
    assert main(["version"]) == 1
    assert capsys.readouterr().err == (
        "lamina: no \\x1b[31m\\xff\nhint: try\\x0d\\xc2\\x9b1m\nthis\n"
    )


def test_run_keeps_the_options_of_its_command() -> None:
    verb = find_verb("run")
    assert verb is not None
    parser = dispatch.verb_parser(verb)
    args = parser.parse(
        ["-it", "-e", "A=1", "-v/a:/b", "--rm", "image", "ls", "-l", "--json", "--", "-h"]
    )
    assert (args.image, args.command) == ("image", ["ls", "-l", "--json", "--", "-h"])
    assert (args.interactive, args.tty, args.rm, args.env, args.volume) == (
        True,
        True,
        True,
        ["A=1"],
        ["/a:/b"],
    )
    assert parser.parse(["--", "image", "-x"]).command == ["-x"]
    assert parser.parse(["image"]).command == []


def test_json_of_a_command_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--bogus", "image", "x", "--json"]) == 125
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ([], 0),
        (["image"], 0),
        (["-i", "image"], 1),
        (["-it", "image"], 1),
        (["-e", "image", "x"], 2),
        (["-eA", "x"], 1),
        (["-ite", "A", "x"], 2),
        (["-iteA", "x"], 1),
        (["--env", "A", "x"], 2),
        (["--env=A", "x"], 1),
        (["--rm", "--", "x"], 1),
        (["-", "x"], 0),
        (["-e"], 1),
        (["--unknown", "x"], 1),
        (["-?", "x"], 1),
    ],
)
def test_leading_options(words: list[str], count: int) -> None:
    verb = find_verb("run")
    assert verb is not None
    assert count_leading_options(dispatch.verb_parser(verb), words) == count


def test_module_entry_point() -> None:
    done = lamina("version", "--json")
    assert done.returncode == 0
    assert set(json.loads(done.stdout)) == {"lamina", "python", "machine"}
    assert lamina("nonsense").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["run", "--rm"], "IMAGE"),
        (["key"], "generate|public, NAME"),
        (["policy", "check"], "FILE"),
        (["mount", "image"], "DIR"),
    ],
)
def test_what_is_missing_is_called_as_in_the_help(
    arguments: list[str], missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) in (2, 125)
    message = f"lamina: the following arguments are required: {missing}\n"
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["ls", "nothing"], "oci:nothing"),
        (["ls", "-l", "team/app:1", "/etc"], "HOST/team/app:1"),
        (["ls", "docker://nothing"], None),
        (["ls", "docker.io/library/nothing"], None),
    ],
)
def test_a_name_without_a_registry_is_told_so(words: list[str], named: str | None) -> None:
    message = "the name of https://registry-1.docker.io cannot be resolved"
    hint = dispatch._hint_of_default_registry(words, message)
    assert (named in hint) if named and hint else hint is named
    assert dispatch._hint_of_default_registry(words, "the registry r.example said no") is None

"""From the arguments of the process to an exit code: find the verb, import it alone, run it,
tell what went wrong.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

from lamina.cli import exit_codes
from lamina.cli.help_text import HelpPage, Row, Section, page_sections, paragraphs, render_text
from lamina.cli.output import flush_output, print_json, print_text
from lamina.cli.parser import Parser, count_leading_options, terminal_width
from lamina.cli.verbs import VERBS, Verb, find_verb, load_verb
from lamina.errors import (
    Error,
    FetchError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    os_hint,
)

ABOUT: Final = paragraphs(
    """
    Lamina starts containers before their image has arrived: it converts OCI images to a chunked,
    verifiable file system, ships them through any registry and reads them on demand.

    IMAGE is a reference as skopeo writes it: docker://HOST/NAME:TAG (or just NAME:TAG),
    oci:DIR:TAG, oci-archive:FILE, docker-archive:FILE.
    """
)


_WITHOUT_MSGSPEC: Final = ("version", "completion")
_WRITING: Final = ("convert", "index", "copy", "unpack", "export", "encrypt", "decrypt")
"""Verbs that have something to tidy up when they are told to end; servers see to it themselves."""

_LINUX_ONLY: Final = (
    *("profile", "run", "ps", "exec", "logs", "stop", "kill", "wait"),
    *("mount", "serve", "umount", "mounts", "service"),
)
"""Verbs that are about mounts, containers and the mount service."""

_BARE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._/-]*(:[\w.-]+)?(@[a-z0-9]+:[0-9a-f]+)?")
"""An image as docker users write it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever tidies up after an interrupt does so after this too."""


class Invocation:
    """What the frame must know of the arguments to tell an error the right way."""

    def __init__(self, arguments: Sequence[str]) -> None:
        # Until they are parsed; a command of `lamina run` may have a --json of its own.
        self.wants_json = "--json" in arguments and "run" not in arguments
        self.verbose = False
        self.failure_code: int | None = None


def run_command(arguments: Sequence[str]) -> int:
    """Run ``lamina`` with these arguments (without the program's name) and return its exit code."""
    try:
        return _guarded(list(arguments))
    except BrokenPipeError:
        # Python flushes stdout once more at exit; that must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exit_codes.BROKEN_PIPE
    except Terminated:
        return exit_codes.TERMINATED
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED


def _guarded(arguments: list[str]) -> int:
    invocation = Invocation(arguments)
    try:
        try:
            code = dispatch(arguments, invocation)
        except SystemExit as request:
            # argparse leaves the process after it has shown help.
            code = request.code if isinstance(request.code, int) else 0
        flush_output()
        return code
    except Error as error:
        if isinstance(error, (FetchError, NotFoundError)):
            error.hint = (
                _hint_of_local_image(arguments)
                or error.hint
                or _hint_of_default_registry(arguments, str(error))
            )
        return _report(error, invocation, error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _report(_from_os(error), invocation, Error.exit_code)
    except Exception as error:  # noqa: BLE001 - the last frame: a defect too ends in clear words
        return _report(_from_defect(error, invocation), invocation, exit_codes.INTERNAL)


def dispatch(arguments: Sequence[str], invocation: Invocation) -> int:
    """Parse the arguments and run the verb.  Raises lamina.errors.Error."""
    top = top_parser()
    cut = count_leading_options(top, arguments)
    before, words = top.parse_args(arguments[:cut]), list(arguments[cut:])
    if before.version:
        words = ["version"]
    if words[:1] == ["help"]:
        before.help, words = True, words[1:]
    if before.help or not words:
        return _show_help(words, failed=not before.help)
    verb = _verb_called(words[0])
    if verb.name in _LINUX_ONLY and sys.platform != "linux":
        raise UnsupportedError(
            f"lamina {verb.name} needs Linux",
            hint="to read, convert and copy images works here, and so does lamina.open",
        )
    parser = verb_parser(verb)
    invocation.failure_code = parser.page.failure_code
    # Options from before the verb that it does not have are dropped.
    common = [word for word in _canonical(before) if word.partition("=")[0] in parser.option_names]
    args = parser.parse([*common, *words[1:]])
    invocation.wants_json = getattr(args, "json", False)
    invocation.verbose = bool(args.verbose)
    from lamina.cli import console

    console.set_up(verbosity=args.verbose, quiet=args.quiet, form=args.log_format)
    _import_without_interrupt(verb)
    with _told_to_end(verb):
        return load_verb(verb).run(args)


@contextlib.contextmanager
def _told_to_end(verb: Verb) -> Iterator[None]:
    """Make SIGTERM an exception while a verb writes."""
    import signal
    import threading

    if verb.name not in _WRITING or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, _frame: object) -> NoReturn:
    import signal

    # Once is enough: a second one, as timeout(1) sends, must not end the tidying up.
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


def _import_without_interrupt(verb: Verb) -> None:
    """Import msgspec, which nearly all verbs need, with ``^C`` held back: its module forgets an
    interrupt that comes while it is imported, and crashes when it is used (0.22).
    """
    if verb.name in _WITHOUT_MSGSPEC:
        return
    import signal

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        import msgspec  # noqa: F401
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _canonical(before: Namespace) -> list[str]:
    options = [f"--{name}" for name in ("json", "quiet") if getattr(before, name)]
    options += ["--verbose"] * before.verbose
    for name in ("log_format", "store"):
        value = getattr(before, name)
        if value is not None:
            options.append(f"--{name.replace('_', '-')}={value}")
    return options


def verb_parser(verb: Verb) -> Parser:
    """Return the parser of a verb with all its options; imports the verb's module."""
    module = load_verb(verb)
    parser = Parser(f"lamina {verb.name}", verb.summary, module.HELP)
    module.add_arguments(parser)
    return parser


def top_parser() -> Parser:
    """Return the parser of what may stand before the verb."""
    parser = Parser("lamina", "", HelpPage(""))
    group = parser.add_argument_group("Options before the verb")
    group.add_argument(
        "-h",
        "--help",
        action="store_true",
        help="show this page; `lamina help VERB` shows the verb's",
    )
    group.add_argument("-V", "--version", action="store_true", help="print the version")
    group.add_argument("--json", action="store_true", help="as after the verb, like the four below")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing on standard error but errors"
    )
    group.add_argument(
        "-v", "--verbose", action="count", default=0, help="say more on standard error"
    )
    group.add_argument(
        "--log-format", metavar="text|json", help="form of the lines on standard error"
    )
    group.add_argument("--store", metavar="DIR", help="folder of the node store")
    return parser


def top_sections() -> list[Section]:
    """Return what ``lamina --help`` shows below its first lines."""
    groups: dict[str, list[Row]] = {}
    for verb in VERBS:
        groups.setdefault(verb.group, []).append(Row(verb.name, verb.summary))
    body = [Section(title, rows=tuple(rows)) for title, rows in groups.items()]
    body += page_sections(HelpPage(""), top_parser())
    codes = tuple(Row(str(item.code), item.meaning) for item in exit_codes.exit_codes())
    return [*body, Section("Exit codes", rows=codes)]


def top_help(width: int) -> str:
    """Return the page of ``lamina --help``."""
    return render_text("Usage: lamina VERB [OPTIONS] [ARGUMENTS]", ABOUT, top_sections(), width)


def _show_help(words: Sequence[str], *, failed: bool) -> int:
    if words:
        text = verb_parser(_verb_called(words[0])).format_help()
    else:
        text = top_help(terminal_width())
    if failed:
        sys.stderr.write(text)
    else:
        print_text(text)
    return UsageError.exit_code if failed else 0


def _verb_called(word: str) -> Verb:
    verb = find_verb(word)
    if verb is not None:
        return verb
    import difflib

    from lamina.cli.foreign_verbs import FOREIGN_VERBS

    if word in FOREIGN_VERBS:
        raise UsageError(f"there is no verb {word!r}", hint=FOREIGN_VERBS[word])
    near = difflib.get_close_matches(word, [verb.name for verb in VERBS], 1)
    hint = f"did you mean `lamina {near[0]}`?" if near else "`lamina --help` lists the verbs"
    raise UsageError(f"there is no verb {word!r}", hint=hint)


def _hint_of_local_image(arguments: Sequence[str]) -> str | None:
    """Return a hint if a word was taken for an image in a registry, and is one on this machine."""
    # A mountpoint is taken for no image.
    words = arguments[:-1] if arguments[:1] in (["mount"], ["umount"]) else arguments
    for word in words:
        name = word.partition(":")[0]
        if name and os.path.exists(os.path.join(name, "oci-layout")):
            return f"the folder {name} is an OCI layout: oci:{word} names it"
        if word.endswith(".tar") and os.path.isfile(word):
            return f"the file {word} is here: oci-archive:{word} or docker-archive:{word} names it"
    return None


def _hint_of_default_registry(arguments: Sequence[str], message: str) -> str | None:
    """Return a hint if a name without a registry failed, which means Docker Hub.

    That is not what everybody means by it.
    """
    if "docker.io" not in message:
        return None
    for word in arguments[1:]:
        host, slash, _ = word.partition("/")
        if _BARE_NAME.fullmatch(word) and not (slash and ("." in host or ":" in host)):
            return (
                f"{word} without a registry is an image of Docker Hub; HOST/{word} is one of "
                f"another registry, oci:{word} one in a folder"
            )
    return None


def _from_os(error: OSError) -> Error:
    if error.filename is None and isinstance(error, FileNotFoundError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return Error("the folder that this runs in is gone", hint="cd to another")
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return Error(f"{where}{error.strerror or error}", hint=os_hint(error))


def _from_defect(error: Exception, invocation: Invocation) -> Error:
    if invocation.verbose:
        import traceback

        traceback.print_exception(error)
    return Error(
        f"defect: {type(error).__name__}: {error}",
        hint="this is a fault of Lamina; please report it with what --verbose prints",
    )


def _report(error: Error, invocation: Invocation, code: int) -> int:
    """Tell an error on stderr, and on stdout as JSON where JSON was asked for."""
    from lamina.cli import console

    if invocation.failure_code is not None:
        code = invocation.failure_code
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if invocation.wants_json:
        body = {"kind": type(error).__name__, "message": str(error), "hint": error.hint}
        with contextlib.suppress(OSError, Error):
            print_json({"error": {**body, "exit_code": code}})
            sys.stdout.flush()
    console.report_error(error)
    return code

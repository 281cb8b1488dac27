"""The completion script of fish 3 and later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from lamina.cli.completion.command_model import TRANSPORTS, Argument, Option, VerbModel

_HEAD: Final = r"""# fish completion for lamina; load it with:  lamina completion fish | source
function __lamina_images
    set -l word (commandline -ct)
    if string match -qr '^(oci|oci-archive|docker-archive|dir):' -- $word
        set -l prefix (string replace -r ':.*' ':' -- $word)
        for path in (__fish_complete_path (string replace -r '^[^:]*:' '' -- $word))
            echo $prefix$path
        end
    else
        printf '%s\n' @TRANSPORTS@
        __fish_complete_directories $word
    end
end

function __lamina_at --description 'whether the cursor is at argument N of a verb'
    set -l words (commandline -opc)[2..]
    set -l arguments (string match -v -- '-*' $words)
    test "$arguments[1]" = $argv[1]; and test (count $arguments) -eq $argv[2]
end

function __lamina_after --description 'whether the cursor is at or after argument N of a verb'
    set -l words (commandline -opc)[2..]
    set -l arguments (string match -v -- '-*' $words)
    test "$arguments[1]" = $argv[1]; and test (count $arguments) -ge $argv[2]
end

complete -c lamina -f
"""
_VALUES: Final = {
    "file": "-rF",
    "folder": "-xa '(__fish_complete_directories)'",
    "image": "-xa '(__lamina_images)'",
    "mountpoint": "-xa '(lamina mounts --mountpoints 2>/dev/null)'",
    "container": "-xa '(lamina ps -aq 2>/dev/null)'",
    "any": "-x",
}


def fish_script(verbs: Sequence[VerbModel], top: Sequence[Option]) -> str:
    """Return the whole script."""
    lines = [_HEAD.replace("@TRANSPORTS@", " ".join(TRANSPORTS))]
    names = " ".join(verb.name for verb in verbs)
    lines += [f"complete -c lamina -n __fish_use_subcommand {_option(option)}" for option in top]
    for verb in verbs:
        about = _quoted(verb.summary)
        lines.append(f"complete -c lamina -n __fish_use_subcommand -a {verb.name} -d {about}")
        seen = f"-n '__fish_seen_subcommand_from {verb.name}'"
        lines += [f"complete -c lamina {seen} {_option(option)}" for option in verb.options]
        lines += _arguments(verb.name, verb.arguments)
    lines.append(f"complete -c lamina -n '__lamina_at help 1' -xa {_quoted(names)}")
    return "\n".join([*lines, ""])


def _option(option: Option) -> str:
    words = [
        f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
    ]
    if option.kind:
        words.append(_value(option.kind, option.choices))
    return " ".join([*words, "-d", _quoted(option.help)])


def _arguments(verb: str, arguments: Sequence[Argument]) -> Iterator[str]:
    for position, argument in enumerate(arguments, 1):
        if argument.kind == "any":
            continue
        test = "__lamina_after" if argument.many else "__lamina_at"
        value = _value(argument.kind, argument.choices)
        yield f"complete -c lamina -n '{test} {verb} {position}' {value}"


def _value(kind: str, choices: Sequence[str]) -> str:
    return f"-xa {_quoted(' '.join(choices))}" if kind == "choice" else _VALUES[kind]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

"""The completion script of zsh, for its own completion system (compinit)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from lamina.cli.completion.command_model import TRANSPORTS, Argument, Option, VerbModel

_ACTIONS: Final = {
    "file": "_files",
    "folder": "_files -/",
    "image": "_lamina_images",
    "container": "_lamina_containers",
    "mountpoint": "_lamina_mountpoints",
    "verb": "_lamina_verbs",
    "any": " ",
}


def zsh_script(verbs: Sequence[VerbModel], top: Sequence[Option]) -> str:
    """Return the whole script; it works from a folder of $fpath and when it is sourced."""
    lines = _helpers(verbs)
    lines += [
        "_lamina() {",
        "    local context state state_descr line",
        "    typeset -A opt_args",
        "    _arguments -C \\",
        *(f"        {spec} \\" for option in top for spec in _option_specs(option)),
        "        '1: :_lamina_verbs' \\",
        "        '*::argument:->verb' && return",
        "    [[ $state == verb ]] || return",
        "    case $words[1] in",
        "    help) _arguments '1: :_lamina_verbs' ;;",
    ]
    for verb in verbs:
        specs = [spec for option in verb.options for spec in _option_specs(option)]
        specs += _argument_specs(verb.arguments)
        lines += [f"    {verb.name})", "        _arguments -s \\"]
        lines += [f"            {spec} \\" for spec in specs[:-1]]
        lines += [f"            {specs[-1]}", "        ;;"]
    lines += ["    esac", "}", ""]
    lines += [
        'if [[ $funcstack[1] == _lamina ]]; then _lamina "$@"; else compdef _lamina lamina; fi'
    ]
    return "\n".join([*lines, ""])


def _helpers(verbs: Sequence[VerbModel]) -> list[str]:
    """Return the functions that complete verbs, images and mountpoints."""
    return [
        "#compdef lamina",
        "# zsh completion for lamina; load it with:  source <(lamina completion zsh)",
        "",
        "_lamina_verbs() {",
        "    local -a verbs",
        "    verbs=(",
        *(f"        {_quoted(f'{verb.name}:{verb.summary}')}" for verb in verbs),
        "    )",
        "    _describe -t verbs 'verb' verbs",
        "}",
        "",
        "_lamina_images() {",
        "    compset -P '(oci|oci-archive|docker-archive|dir):' && { _files; return; }",
        f"    compadd -S '' -- {' '.join(TRANSPORTS)}",
        "    _files -/",
        "}",
        "",
        "_lamina_mountpoints() {",
        "    local -a points",
        '    points=("${(@f)$(lamina mounts --mountpoints 2>/dev/null)}")',
        "    compadd -- $points",
        "}",
        "",
        "_lamina_containers() {",
        '    compadd -- ${(f)"$(lamina ps -aq 2>/dev/null)"}',
        "}",
        "",
    ]


def _option_specs(option: Option) -> Iterator[str]:
    excluded = " ".join(option.names)
    for name in option.names:
        takes = ""
        if option.kind:
            takes = f":value:{_action(option.kind, option.choices)}"
        suffix = "=" if takes and name.startswith("--") else "+" if takes else ""
        repeats = "*" if takes else f"({excluded})"
        yield _quoted(f"{repeats}{name}{suffix}[{_plain(option.help)}]{takes}")


def _argument_specs(arguments: Sequence[Argument]) -> Iterator[str]:
    for position, argument in enumerate(arguments, 1):
        place = "*" if argument.many else str(position)
        action = _action(argument.kind, argument.choices)
        yield _quoted(f"{place}:{_plain(argument.name)}:{action}")


def _action(kind: str, choices: Sequence[str]) -> str:
    return f"({' '.join(choices)})" if kind == "choice" else _ACTIONS[kind]


def _plain(text: str) -> str:
    return "".join(char for char in text if char not in "[]:'\\")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"

"""The completion script of bash 4 and later; needs nothing but bash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from lamina.cli.completion.command_model import TRANSPORTS, Option, VerbModel

_HEAD: Final = r"""# bash completion for lamina; load it with:  source <(lamina completion bash)
_lamina() {
    local words=() cut=0 quote="" verb="" word option="" kind="" value count=-1 index
    _lamina_split "${COMP_LINE:0:COMP_POINT}"
    local cur=${words[${#words[@]}-1]}
    for ((index = 1; index < ${#words[@]} - 1; index++)); do
        word=${words[index]}
        if [[ -n $option ]]; then
            option=""
        elif [[ $word == -* && $word != *=* ]]; then
            [[ -n $(_lamina_value_kind "$verb" "$word") ]] && option=$word
        elif [[ $word != -* ]]; then
            if [[ -z $verb ]]; then verb=$word; fi
            count=$((count + 1))
        fi
    done
    value=$cur
    if [[ -n $option ]]; then
        kind=$(_lamina_value_kind "$verb" "$option")
    elif [[ $cur == --*=* ]]; then
        kind=$(_lamina_value_kind "$verb" "${cur%%=*}")
        value=${cur#*=}
    elif [[ $cur == -* ]]; then
        kind="words $(_lamina_options "$verb")"
    elif [[ -z $verb ]]; then
        kind="words $(_lamina_verbs)"
    else
        kind=$(_lamina_argument_kind "$verb" "$count")
    fi
    _lamina_reply "$kind" "$value"
    # bash replaces only what follows its last word break.
    cut=$((cut - ${#cur} + ${#value}))
    ((cut > 0)) && COMPREPLY=("${COMPREPLY[@]#"${value:0:cut}"}")
}

# Fills `words` as a shell would read the line: bash's own words are cut at ":" and "=" too, which
# references contain, and keep their quotes.  `cut` is how much of the last word bash leaves as it
# is, `quote` the mark that is still open.
_lamina_split() {
    local line=$1 text="" begun="" char index
    for ((index = 0; index < ${#line}; index++)); do
        char=${line:index:1}
        if [[ $char == "$quote" ]]; then
            quote=""
        elif [[ $quote == "'" ]]; then
            text+=$char
        elif [[ $char == "\\" ]]; then
            index=$((index + 1)) text+=${line:index:1} begun=1
        elif [[ -n $quote ]]; then
            text+=$char
        elif [[ $char == [\"\'] ]]; then
            quote=$char cut=${#text} begun=1
        elif [[ $char == [[:space:]] ]]; then
            [[ -n $begun ]] && words+=("$text")
            text="" cut=0 begun=""
        else
            text+=$char begun=1
            # An "@" belongs to what bash replaces.
            case $char in [:=]) cut=${#text} ;; @) cut=$((${#text} - 1)) ;; esac
        fi
    done
    words+=("$text")
}

_lamina_reply() {
    local kind=$1 value=$2
    COMPREPLY=()
    case $kind in
    file) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$value") ;;
    folder) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$value") ;;
    mountpoint | container)
        # Not compgen -W, which expands what it is given: a name is data.  And quoted as one.
        compopt -o filenames 2>/dev/null
        local point listing=(mounts --mountpoints)
        [[ $kind == container ]] && listing=(ps -aq)
        COMPREPLY=()
        while IFS= read -r point; do
            [[ $point == "$value"* ]] && COMPREPLY+=("$point")
        done < <(lamina "${listing[@]}" 2>/dev/null)
        ;;
    image)
        compopt -o nospace 2>/dev/null
        if [[ $value == *:* && $value != docker:* ]]; then
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -P "${value%%:*}:" -- "${value#*:}")
        else
            local folders transports
            mapfile -t folders < <(compgen -d -- "$value")
            mapfile -t transports < <(compgen -W "@TRANSPORTS@" -- "$value")
            if ((${#transports[@]} == 0)); then
                compopt -o filenames 2>/dev/null
            elif ((${#folders[@]} > 0)); then
                # Not as filenames, because of the ":" of the others; so quoted here.
                [[ -n $quote ]] || mapfile -t folders < <(printf '%q\n' "${folders[@]}")
                folders=("${folders[@]/%//}")
            fi
            COMPREPLY=("${transports[@]}" "${folders[@]}")
        fi
        ;;
    "words "*) mapfile -t COMPREPLY < <(compgen -W "${kind#words }" -- "$value") ;;
    esac
}
"""


def bash_script(verbs: Sequence[VerbModel], top: Sequence[Option]) -> str:
    """Return the whole script."""
    lines = [_HEAD.replace("@TRANSPORTS@", " ".join(TRANSPORTS))]
    lines += [f'_lamina_verbs() {{ echo "{" ".join(verb.name for verb in verbs)} help"; }}', ""]
    lines += ["_lamina_options() {", "    case $1 in"]
    lines += [f'    {verb.name}) echo "{_names(verb.options)}" ;;' for verb in verbs]
    lines += [f'    *) echo "{_names(top)}" ;;', "    esac", "}", ""]
    lines += ["_lamina_value_kind() {", '    case "$1 $2" in']
    for verb in verbs:
        lines += _value_cases(verb.name, verb.options)
    lines += [*_value_cases("", top), "    esac", "}", ""]
    lines += ["_lamina_argument_kind() {", '    case "$1 $2" in']
    for verb in verbs:
        lines += _argument_cases(verb)
    names = " ".join(verb.name for verb in verbs)
    lines += [f'    "help 0") echo "words {names}" ;;', "    esac", "}", ""]
    return "\n".join([*lines, "complete -F _lamina lamina", ""])


def _names(options: Iterable[Option]) -> str:
    return " ".join(name for option in options for name in option.names)


def _value_cases(verb: str, options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        if option.kind:
            patterns = "|".join(f'"{verb} {name}"' for name in option.names)
            yield f"    {patterns}) echo {_kind(option.kind, option.choices)} ;;"


def _argument_cases(verb: VerbModel) -> Iterator[str]:
    for position, argument in enumerate(verb.arguments):
        pattern = f'"{verb.name} "*' if argument.many else f'"{verb.name} {position}"'
        yield f"    {pattern}) echo {_kind(argument.kind, argument.choices)} ;;"


def _kind(kind: str, choices: Sequence[str]) -> str:
    return f'"words {" ".join(choices)}"' if kind == "choice" else kind

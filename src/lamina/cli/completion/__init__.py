"""Shell completion: the parsers as plain words, and one script maker a shell."""

from __future__ import annotations


def scripts() -> dict[str, str]:
    """Return the script of each shell by the shell's name."""
    from lamina.cli.completion.bash import bash_script
    from lamina.cli.completion.command_model import top_options, verb_models
    from lamina.cli.completion.fish import fish_script
    from lamina.cli.completion.zsh import zsh_script

    makers = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
    return {shell: make(verb_models(), top_options()) for shell, make in makers.items()}

"""Scripts that complete the arguments of a program in a shell when the user presses Tab.

The script contains all words, so that completing starts no Python. It offers the names of options, groups and keys
first, and the values of a key once ``KEY=`` is typed; where nothing fits, the shell completes names of files.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_BASH = """\
{function}() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" offered={names}
    local word="${{line##* }}"
    [[ "$word" == *=* ]] && offered={values}
    COMPREPLY=($(compgen -W "$offered" -- "$word"))
    # Where the shell divides words at "=", it expects only what follows the last one.
    if [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${{COMPREPLY[@]#"${{word%=*}}="}}")
    elif [[ ${{#COMPREPLY[@]}} -eq 1 && "${{COMPREPLY[0]}}" == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}}
complete -o default -F {function} {program}
"""
_ZSH = """\
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}
{function}() {{
    local -a names=({names}) values=({values})
    if [[ "$PREFIX" == *=* ]]; then
        compadd -a values && return
        compset -P '*='
    else
        # No space is added after "KEY=".
        compadd -S '' -- ${{(M)names:#*=}}
        local found=$?
        compadd -- ${{names:#*=}} || (( ! found )) && return
    fi
    _files
}}
compdef {function} {program}
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH}
SHELLS = tuple(_SCRIPTS)


@dataclass(frozen=True)
class Words:
    """What may stand on the command line of a program."""

    names: Sequence[str]
    """Options, subcommands, ``group=`` and ``key=``."""
    values: Sequence[str] = ()
    """``group=option`` and ``key=value``, for keys that take one of a few values."""


def script(shell: str, program: str, words: Words) -> str:
    """The completion script of a program.

    Args:
        shell: one of ``SHELLS``.
        program: the name of the command.
        words: what to offer.
    """
    quoted = _in_quotes if shell == "bash" else _each_in_quotes
    return _SCRIPTS[shell].format(
        function=f"_{program.replace('-', '_')}",
        program=program,
        names=quoted(words.names),
        values=quoted(words.values),
    )


def words_of_parser(parser: argparse.ArgumentParser, subcommand: str | None = None) -> Words:
    """The options of a parser, its subcommands, and the choices and options of these; or only those of a subcommand."""
    found: dict[str, None] = {}
    for action in parser._actions:
        found |= dict.fromkeys(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            if subcommand is not None:
                return words_of_parser(action.choices[subcommand])
            for name, inner in action.choices.items():
                found |= dict.fromkeys([name, *words_of_parser(inner).names])
        elif action.choices is not None:
            found |= dict.fromkeys(map(str, action.choices))
    return Words(list(found))


def _in_quotes(words: Iterable[str]) -> str:
    """The words, separated by spaces, as one word of a shell script."""
    return "'" + " ".join(words).replace("'", "'\\''") + "'"


def _each_in_quotes(words: Iterable[str]) -> str:
    return " ".join(_in_quotes([word]) for word in words)

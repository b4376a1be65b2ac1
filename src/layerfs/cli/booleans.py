"""`--tty=false`: flags with a value, as Go's programs have them, and scripts for docker use them."""

from __future__ import annotations

from collections.abc import Sequence

import click

_TRUE = ("1", "t", "true")
_FALSE = ("0", "f", "false")


def without_values(command: click.Command, arguments: Sequence[str]) -> list[str]:
    """Return *arguments* of *command* with flags that have a value as click knows them: given, or not.

    What stands after the options is left alone.
    """
    options = {
        name: parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    found: list[str] = []
    interspersed = command.context_settings.get("allow_interspersed_args", True)
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--" or (not word.startswith("-") and not interspersed) or word == "-":
            return [*found, word, *rest]
        name, equals, value = word.partition("=")
        option = options.get(name)
        if equals and option is None and not name.startswith("--"):
            others, last = name[:-1], f"-{name[-1]}"  # "-it=false" is "-i -t=false"
            if all((it := options.get(f"-{letter}")) is not None and it.is_flag for letter in others[1:]):
                found.append(others)
                name, option = last, options.get(last)
        if option is not None and option.is_flag and equals:
            if value.lower() in _FALSE:
                found = [it for it in found if options.get(it) is not option]
                found += option.secondary_opts[:1]
                continue
            word = name if value.lower() in _TRUE else word
        found.append(word)
        if not equals and rest and _takes_next(word, options):
            found.append(rest.pop(0))
    return found


def _takes_next(word: str, options: dict[str, click.Option]) -> bool:
    """Return whether the argument after *word* is the value of an option in it."""
    if word.startswith("--"):
        return word in options and not options[word].is_flag
    for at in range(1, len(word)):
        option = options.get(f"-{word[at]}")
        if option is not None and not option.is_flag and not option.count:
            return at == len(word) - 1
    return False

"""A command that has commands of its own: which of them is meant, and its help."""

from __future__ import annotations

from rootlessnet.cli import arguments
from rootlessnet.errors import EXIT_FAILURE, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def sentence(text: str) -> str:
    """What a command does, as its own --help says it."""
    return f"{text[0].upper()}{text[1:]}."


def choose(
    argv: Sequence[str],
    group: str,
    commands: Mapping[str, str],
    *,
    usage: str = "COMMAND [OPTIONS]",
    noun: str = "command",
) -> tuple[str, list[str]] | int:
    """The name of the command and its words, common options before the name included; or the exit
    status, when only the help was wanted, or nothing at all said. Raises UsageError."""
    before, rest = arguments.split(argv)
    if not rest:
        values, _ = arguments.parse(before, arguments.COMMON)
        if argv and "help" not in values:
            raise UsageError(f"{group} needs a {noun}: {', '.join(commands)}")
        print(f"usage: rootlessnet {group} {usage}\n\n{noun}s:")
        width = max(map(len, commands)) + 2
        for name, text in commands.items():
            print(f"  {name:<{width}}{text}")
        print(f"\nrootlessnet {group} {noun.upper()} --help shows the options of one.")
        return 0 if argv else EXIT_FAILURE
    if rest[0] not in commands:
        raise UsageError(
            f"unknown {noun} {group} {rest[0]}", hint=f"there are {', '.join(commands)}"
        )
    return rest[0], [*before, *rest[1:]]


def parse(
    argv: list[str],
    usage: str,
    what: str,
    options: tuple[arguments.Option, ...],
    least: int,
    most: int | None,
) -> tuple[arguments.Values, list[str]] | None:
    """The values and words of "GROUP NAME ...", as usage begins; None when only help was wanted.

    least and most say how many words there may be; a word is what the group is called after.
    """
    options = (*arguments.COMMON, *options)
    values, words = arguments.parse(argv, options)
    if "help" in values:
        print(arguments.help_text(usage, sentence(what), options))
        return None
    if len(words) < least:
        noun, name = usage.split()[:2]
        raise UsageError(f"{noun} {name}: no {noun} is named: {usage}")
    arguments.no_words(words[len(words) if most is None else most :])
    return values, words

"""Command lines, parsed by hand: `enter` is run often, and argparse alone costs it 6 ms.

An option is data, from which the parser, --help and the shell completions all follow.
"""

from __future__ import annotations

from rootlessnet.errors import UsageError, set_debug

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn


class Option:
    """--name, perhaps -short; with a metavar it takes a value. Any option may be repeated.

    values are those that the completions offer, where the metavar does not say it (`complete.py`).
    An empty value is refused but with may_be_empty, where it has podman's meaning or message.
    """

    __slots__ = ("may_be_empty", "metavar", "name", "short", "text", "values")

    def __init__(
        self,
        name: str,
        text: str,
        *,
        metavar: str = "",
        short: str = "",
        values: tuple[str, ...] = (),
        may_be_empty: bool = False,
    ) -> None:
        self.name = name
        self.short = short
        self.metavar = metavar
        self.text = text
        self.values = values
        self.may_be_empty = may_be_empty


COMMON = (
    Option("static-dir", "which instance: the static dir it belongs to", metavar="DIR"),
    Option("debug", "say on stderr what is being done"),
    Option("help", "print this help", short="h"),
)

JSON = Option("json", "print one JSON document")

CREATE = (
    Option("driver", "how to connect: slirp4netns or pasta", metavar="NAME"),
    Option("option", "driver option", metavar="KEY=VALUE", short="o"),
    Option("linger", "keep the instance so long after the last lease (0)", metavar="SECONDS"),
    Option("timeout", "for the instance to be ready (10)", metavar="SECONDS"),
)

PUBLISH = Option(
    "publish",
    "lead ports of the host inside: [IP:][PORT:]PORT[-PORT][/udp]",
    metavar="RULE",
    short="p",
)

Values = dict[str, list[str]]


def parse(
    argv: Sequence[str],
    options: Sequence[Option],
    *,
    stop_at_word: bool = False,
    may_be_empty: bool = False,
) -> tuple[Values, list[str]]:
    """The values of each option that was given, by name, and the remaining words.

    With stop_at_word everything from the first word on is left alone (it is a command line of its
    own). Words are refused that are empty, but with may_be_empty. An option without metavar has
    empty strings as values. Raises UsageError.
    """
    known = {f"--{option.name}": option for option in options}
    known.update({f"-{option.short}": option for option in options if option.short})
    values: Values = {}
    words: list[str] = []
    left = list(argv)
    while left:
        item = left.pop(0)
        if item == "--":
            words += left
            break
        if item == "-" or not item.startswith("-"):
            words.append(item)
            if stop_at_word:
                words += left
                break
            continue
        if item.startswith("--"):
            name, equals, value = item.partition("=")
        else:
            name, value = item[:2], item[2:]
            equals = "=" if value else ""
        option = known.get(name)
        if option is None:
            raise UsageError(f"unknown option {name}")
        if not option.metavar:
            if equals:
                raise UsageError(f"option {name} takes no value")
        elif not equals:
            if not left:
                raise UsageError(f"option {name} needs a value: {name} {option.metavar}")
            value = left.pop(0)
        if option.metavar and not value and not option.may_be_empty:
            raise UsageError(
                f"option {name} needs a value, not an empty one: {name} {option.metavar}"
            )
        values.setdefault(option.name, []).append(value)
    # The completions are asked about words that are being typed, and a command sees to its own.
    if "" in words and not (stop_at_word or may_be_empty or "words" in values):
        raise UsageError("an argument is an empty word")
    if "debug" in values:
        set_debug()
    return values, words


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The common options before the name of a command, and the rest from that name on."""
    position = 0
    while position < len(argv) and argv[position].startswith("-"):
        position += 2 if argv[position] == "--static-dir" else 1
    return list(argv[:position]), list(argv[position:])


def last(values: Values, name: str) -> str:
    """The value of an option that was given last; empty when it was not given."""
    return values.get(name, [""])[-1]


def leave(status: int) -> NoReturn:
    """End the program here, without the milliseconds that Python takes to give its memory back."""
    import os
    import sys

    sys.stdout.flush()
    os._exit(status)


def read(
    argv: Sequence[str],
    usage: str,
    what: str,
    options: Sequence[Option] = COMMON,
    *,
    least: int = 0,
    most: int = 0,
) -> tuple[Values, list[str]] | None:
    """The values and words of a command; None when it was asked for help only, and has given it.

    Raises UsageError for a wrong option, and for fewer or more words than so many.
    """
    values, words = parse(argv, options)
    if "help" in values:
        print(help_text(usage, what, options))
        return None
    if len(words) < least:
        raise UsageError(f"{usage.split()[0]}: too few arguments: {usage}")
    no_words(words[most:])
    return values, words


def no_words(words: Sequence[str]) -> None:
    """Raise UsageError for words that a command has no use for."""
    if words:
        raise UsageError(f"unexpected argument {words[0]}")


class Described(Exception):
    """Instead of the text of --help, when the completions ask: what that is made of."""

    def __init__(self, usage: str, options: Sequence[Option]) -> None:
        super().__init__(usage)
        self.usage = usage
        self.options = options


_is_describing = False


def describe(main: Callable[[list[str]], int], argv: Sequence[str]) -> Described:
    """What the --help of a command is made of; so whatever has a --help is completed."""
    import io
    import sys

    global _is_describing
    _is_describing, output, sys.stdout = True, sys.stdout, io.StringIO()
    try:
        main([*argv, "--help"])
    except Described as found:
        return found
    finally:
        _is_describing, sys.stdout = False, output
    raise LookupError(f"no --help: {' '.join(argv)}")


def help_text(usage: str, what: str, options: Sequence[Option]) -> str:
    """The text of --help."""
    if _is_describing:
        raise Described(usage, options)
    lines = [f"usage: rootlessnet {usage}", "", what, "", "options:"]
    for option in options:
        short = f"-{option.short}, " if option.short else "    "
        left = f"  {short}--{option.name} {option.metavar}".rstrip()
        lines.append(f"{left:<28}  {option.text}")
    return "\n".join(lines)

"""What fits at the cursor of a command line: the shells ask, and know nothing themselves.

The answer follows from what --help is made of: the options of a command, and its usage, of which a
word in capitals says what to put there (NETWORK, DIR; see `_KINDS`). So a new command, a new option
and a new driver are completed without a line here.

A suggestion is a line, `WORD<TAB>DESCRIPTION`. Three lines say that the shell knows better:

    :files           the names of files
    :directories     the names of directories
    :command N       word N (from 0) and what follows is a command line of its own
"""

from __future__ import annotations

import os

from rootlessnet.cli import arguments
from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from rootlessnet.instance.paths import Instance

    Suggestions = Iterator[tuple[str, str]]

FILES = ":files"
DIRECTORIES = ":directories"
COMMAND = ":command"


def suggest(words: Sequence[str]) -> list[str]:
    """The lines that answer: words are those after the program's name, up to the cursor."""
    *before, current = words or [""]
    try:
        lines = list(_Line(before, current).suggestions())
    except (Error, LookupError, OSError):
        return []  # Nothing helps here, a message least of all.
    found = []
    for text, description in lines:
        if text.startswith(":"):
            return [text]
        # Names are others': what would take two lines or two words is left out.
        if text.startswith(current) and text.isprintable() and " " not in text:
            found.append(f"{text}\t{description}")
    return found


class _Line:
    """A command line up to the cursor."""

    def __init__(self, before: list[str], current: str) -> None:
        self.before = before
        self.current = current
        self.position = 0  # how much of it is understood
        self.given: dict[str, str] = {}  # values of options
        self.pending: arguments.Option | None = None  # its value is what is being written
        self.no_more_options = False

    def suggestions(self) -> Suggestions:
        from rootlessnet.__main__ import COMMANDS

        version = arguments.Option("version", "print the version")
        options: Sequence[arguments.Option] = (*arguments.COMMON, version)
        name = self._next_word(options)
        if name is None:
            yield from self._options_or(options, iter(COMMANDS.items()))
            return
        if name not in COMMANDS:
            return
        module = command_module(name)
        path: list[str] = []
        group: dict[str, str] | None = getattr(module, "COMMANDS", None)
        if group is not None:
            inner = self._next_word(arguments.COMMON)
            if inner is None:
                yield from self._options_or(arguments.COMMON, iter(group.items()))
                return
            path = [inner]
        described = arguments.describe(module.main, path)
        kinds = positions(described)
        words: list[str] = []
        while (word := self._next_word(described.options)) is not None:
            if kinds[:1] == ["COMMAND"]:
                yield f"{COMMAND} {self.position - 1}", ""
                return
            words.append(word)
        if kinds[:1] == ["COMMAND"] and self.pending is None and self._is_word():
            yield f"{COMMAND} {len(self.before)}", ""
            return
        kind = ""
        known: set[str] = set()
        if kinds:
            index = min(len(words), len(kinds) - 1)
            kind = kinds[index]
            if index < len(words) and not kind.endswith("..."):
                kind = ""
            elif kind.endswith("..."):
                known.update(words[index:])  # nobody says the same twice
        found = self._of_kind(kind.removesuffix("..."))
        fitting = ((text, description) for text, description in found if text not in known)
        yield from self._options_or(described.options, fitting)

    def _is_word(self) -> bool:
        return self.no_more_options or not self.current.startswith("-")

    def _next_word(self, options: Sequence[arguments.Option]) -> str | None:
        """Go on to the next word that belongs to no option, None when there is none."""
        while self.position < len(self.before):
            item = self.before[self.position]
            self.position += 1
            if self.no_more_options or item == "-" or not item.startswith("-"):
                return item
            if item == "--":
                self.no_more_options = True
                continue
            option = _find(item, options)
            if option is None or not option.metavar:
                continue
            _, equals, value = item.partition("=")
            if len(item) == 2 or (not equals and item.startswith("--")):
                if self.position == len(self.before):
                    self.pending = option
                    return None
                value = self.before[self.position]
                self.position += 1
            self.given[option.name] = value
        return None

    def _options_or(self, options: Sequence[arguments.Option], words: Suggestions) -> Suggestions:
        """The value of an option, if that is due, else options or words as `current` looks."""
        if self.pending is not None:
            yield from self._values(self.pending, "")
        elif self._is_word():
            yield from words
        elif self.current.startswith("--") and "=" in self.current:
            name = self.current.partition("=")[0]
            option = _find(name, options)
            if option is not None and option.metavar:
                yield from self._values(option, f"{name}=")
        else:
            for option in options:
                yield f"--{option.name}", option.text
                if option.short:
                    yield f"-{option.short}", option.text

    def _values(self, option: arguments.Option, prefix: str) -> Suggestions:
        if option.values:
            yield from ((prefix + value, "") for value in option.values)
            return
        kind = option.metavar if option.metavar in _KINDS else option.name.upper()
        if option.metavar == "RULE":
            return  # a new one, of which nothing is known
        for text, description in self._of_kind(kind):
            yield text if text.startswith(":") else prefix + text, description

    def _of_kind(self, kind: str) -> Suggestions:
        if "|" in kind:
            yield from ((choice, "") for choice in kind.split("|"))
        elif kind in _KINDS:
            yield from _KINDS[kind](self)


def command_module(name: str) -> ModuleType:
    """The module of a command."""
    from importlib import import_module

    return import_module(f"rootlessnet.cli.{name.replace('-', '_')}")


def positions(described: arguments.Described) -> list[str]:
    """What the words of a command are, out of its usage: `ls [NETNS] [--json]` gives NETNS.

    A word that can be repeated keeps its dots; one that is made of several parts is "".
    """
    found: list[str] = []
    skip = is_word = False
    for item in described.usage.split():
        bare = item.strip("[]()").removesuffix("...")
        if skip or bare in ("OPTIONS", "|"):
            skip = is_word = False
        elif bare.startswith("-"):
            option = _find(bare, described.options)
            skip = option is not None and bool(option.metavar) and "=" not in bare
            is_word = False
        elif bare == "":
            if is_word:
                found[-1] += "..."
        elif bare.isupper() or "|" in bare:
            is_word = True
            kind = "" if "[" in bare else bare
            found.append(kind + "..." if "..." in item else kind)
    return found


def _find(item: str, options: Sequence[arguments.Option]) -> arguments.Option | None:
    long = item.startswith("--")
    name = item[2:].partition("=")[0] if long else item[1:2]
    for option in options:
        if name and name == (option.name if long else option.short):
            return option
    return None


# --- what there is -------------------------------------------------------------------------------


def _instance(line: _Line) -> Instance:
    from rootlessnet.instance import paths

    return paths.find(line.given.get("static-dir", ""))


def _networks(line: _Line) -> Suggestions:
    from rootlessnet.networks import backend

    # Without recording the choice: a look is no use of it.
    module = backend.choose().module
    networks = {module.default().name: module.default(), **module.load(module.directory())}
    for name, network in sorted(networks.items()):
        yield name, " ".join([network.driver, *(str(item.subnet) for item in network.subnets)])


def _containers(line: _Line) -> Suggestions:
    from rootlessnet.instance import containers

    instance = _instance(line)
    for id in containers.names(instance):
        record = containers.read(instance, id)
        yield id, " ".join(["container", *(record or {}).get("networks", ())])


def _rules(line: _Line) -> Suggestions:
    """Those that `port rm` can withdraw."""
    from rootlessnet.ports import api

    for owner, rule, _ in api.records(_instance(line)):
        if owner == api.USER:
            yield str(rule), "published"


def _leases(line: _Line) -> Suggestions:
    from rootlessnet.instance import named

    for name, record in named.records(_instance(line)).items():
        yield name, f"since {record['since']}"


def _drivers(line: _Line) -> Suggestions:
    """The modules of the package that have the name of a driver."""
    from importlib import import_module
    from pkgutil import iter_modules

    import rootlessnet.drivers

    for found in iter_modules(rootlessnet.drivers.__path__):
        name = getattr(import_module(f"rootlessnet.drivers.{found.name}"), "NAME", None)
        if name == found.name:
            yield name, "driver"


def _driver_options(line: _Line) -> Suggestions:
    from rootlessnet.drivers import options

    for key, value in options.defaults().items():
        if f"{key}=" not in line.current:
            yield f"{key}=", f"default: {options.show(value)}" if value != "" else ""
        elif isinstance(value, bool):
            yield f"{key}=true", ""
            yield f"{key}=false", ""
        elif key in options.CHOICES:
            yield from ((f"{key}={choice}", "") for choice in options.CHOICES[key])
        elif key.startswith("outbound_addr"):
            yield from ((f"{key}={name}", text) for name, text in _devices(line))
        else:
            yield f"{key}={options.show(value)}", "default"


def _keys(line: _Line) -> Suggestions:
    from rootlessnet.config import keys

    yield from ((key, "setting") for key in keys.KEYS)


def _devices(line: _Line) -> Suggestions:
    import socket

    return ((name, "network device") for _, name in socket.if_nameindex())


def _namespaces(line: _Line) -> Suggestions:
    if "/" in line.current:
        yield FILES, ""
        return
    yield from ((name, "/run/netns") for name in sorted(os.listdir("/run/netns")))


def _files(line: _Line) -> Suggestions:
    yield FILES, ""


def _directories(line: _Line) -> Suggestions:
    yield DIRECTORIES, ""


_KINDS: dict[str, Callable[[_Line], Suggestions]] = {
    "CONTAINER": _containers,
    "DEVICE": _devices,
    "DIR": _directories,
    "DRIVER": _drivers,
    "FILE": _files,
    "ID": _containers,
    "KEY": _keys,
    "LEASE": _leases,
    "NETNS": _namespaces,
    "NETWORK": _networks,
    "OPTION": _driver_options,
    "PATH": _files,
    "RULE": _rules,
}
"""By the word in capitals that stands for it in a usage or behind an option, or by the option."""

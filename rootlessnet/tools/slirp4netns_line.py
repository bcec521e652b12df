"""The command line of slirp4netns, as getopt_long(3) reads it there.

What is wrong with a line is not told here: slirp4netns itself is given the line then, and says so
in its own words.
"""

from __future__ import annotations

# Name: (letter, whether it takes a value, the first version that has it). Up to version 1.3.
_OPTIONS = {
    "configure": ("c", False, "0.1.0"),
    "exit-fd": ("e", True, "0.2.0"),
    "ready-fd": ("r", True, "0.2.0"),
    "mtu": ("m", True, "0.2.0"),
    "enable-ipv6": ("6", False, "0.2.0"),
    "api-socket": ("a", True, "0.3.0"),
    "cidr": ("", True, "0.3.0"),
    "disable-host-loopback": ("", False, "0.3.0"),
    "no-host-loopback": ("", False, "0.3.0"),
    "netns-type": ("", True, "0.4.0"),
    "userns-path": ("", True, "0.4.0"),
    "enable-sandbox": ("", False, "0.4.0"),
    "create-sandbox": ("", False, "0.4.0"),
    "enable-seccomp": ("", False, "0.4.0"),
    "outbound-addr": ("", True, "1.1.0"),
    "outbound-addr6": ("", True, "1.1.0"),
    "disable-dns": ("", False, "1.1.0"),
    "macaddress": ("", True, "1.1.9"),
    "target-type": ("", True, "1.2.0"),
    "help": ("h", False, "0.2.0"),
    "version": ("v", False, "0.2.0"),
}
_LETTERS = {letter: name for name, (letter, _, _) in _OPTIONS.items() if letter}

# Undocumented names from before a release; --help does not show them.
_OLD_NAMES = ("no-host-loopback", "create-sandbox")

_OURS = ("exit-fd", "ready-fd", "api-socket")


class NotUnderstood(Exception):
    """Not a line of slirp4netns up to 1.3; the text says what is the matter."""


class Line:
    """options in their order, the last of a name in `values`; `words` are what is no option."""

    def __init__(self, arguments: list[str]) -> None:
        """Raises NotUnderstood."""
        self.options: list[tuple[str, str]] = []
        self.words: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if word == "--":
                self.words += rest
                break
            if word.startswith("--"):
                self._long(word[2:], rest)
            elif word.startswith("-") and word != "-":
                self._short(word[1:], rest)
            else:
                self.words.append(word)
        self.values = dict(self.options)

    def _long(self, text: str, rest: list[str]) -> None:
        given, equals, value = text.partition("=")
        # Any beginning that only one has will do.
        fits = [given] if given in _OPTIONS else [n for n in _OPTIONS if n.startswith(given)]
        if len(fits) != 1:
            raise NotUnderstood(f"--{given}")
        (name,) = fits
        takes = _OPTIONS[name][1]
        if takes and not equals:
            if not rest:
                raise NotUnderstood(f"--{given}")
            value = rest.pop(0)
        if not takes and equals:
            raise NotUnderstood(f"--{given}=")
        self.options.append((name, value))

    def _short(self, letters: str, rest: list[str]) -> None:
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter not in _LETTERS:
                raise NotUnderstood(f"-{letter}")
            name = _LETTERS[letter]
            value = ""
            if _OPTIONS[name][1]:
                if not letters and not rest:
                    raise NotUnderstood(f"-{letter}")
                value, letters = letters or rest.pop(0), ""
            self.options.append((name, value))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def descriptor(self, name: str) -> int:
        """The descriptor that an option names; -1 without it. Raises NotUnderstood."""
        if name not in self.values:
            return -1
        text = self.values[name]
        if not (text.isascii() and text.isdecimal() and len(text) < 9):
            raise NotUnderstood(f"--{name}={text}")
        return int(text)

    def passed_on(self, *without: str) -> list[str]:
        """The options for the real one: all but those that we answer for, and those named."""
        return [
            f"--{name}={value}" if _OPTIONS[name][1] else f"--{name}"
            for name, value in self.options
            if name not in _OURS and name not in without
        ]

    def too_new(self, help_text: str) -> list[tuple[str, str]]:
        """The options that this --help does not show, and the first versions that have them."""
        return [
            (f"--{name}", _OPTIONS[name][2])
            for name in self.values
            if name not in _OLD_NAMES and f"--{name}" not in help_text
        ]

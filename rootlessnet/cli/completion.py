"""rootlessnet completion: the script that makes a shell complete our command lines.

The scripts are in `completions/` of the source. At every TAB they ask
`rootlessnet completion --words -- WORD...`, and `complete.py` answers.
"""

from __future__ import annotations

from rootlessnet.cli import arguments
from rootlessnet.errors import UsageError

OPTIONS = (
    *arguments.COMMON,
    arguments.Option("words", "print what fits as the last of the words that follow"),
)
USAGE = "completion bash|zsh|fish"
WHAT = """Print the script by which a shell completes the command lines of rootlessnet:
  bash   eval "$(rootlessnet completion bash)"      in ~/.bashrc
  zsh    eval "$(rootlessnet completion zsh)"       in ~/.zshrc, after compinit
  fish   rootlessnet completion fish | source       in ~/.config/fish/config.fish"""

SHELLS = ("bash", "zsh", "fish")


def main(argv: list[str]) -> int:
    values, words = arguments.parse(argv, OPTIONS)
    if "help" in values:
        print(arguments.help_text(USAGE, WHAT, OPTIONS))
        return 0
    if "words" in values:
        from rootlessnet.cli import complete

        for line in complete.suggest(words):
            print(line)
        return 0
    if not words:
        raise UsageError(f"completion: too few arguments: {USAGE}")
    arguments.no_words(words[1:])
    if words[0] not in SHELLS:
        raise UsageError(f"completion: unknown shell {words[0]}: {USAGE}")
    print(script(words[0]), end="")
    return 0


def script(shell: str) -> str:
    """The script for a shell."""
    from importlib.resources import files

    name = f"rootlessnet.{shell}"
    return files("rootlessnet").joinpath("completions", name).read_text(encoding="utf-8")

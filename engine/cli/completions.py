"""`tailrace completions`: a script with which a shell completes commands and options."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from engine.cli.output import say_as_is, tell_next

Shell = Literal["bash", "zsh", "fish"]

_WAYS: Final[Mapping[Shell, str]] = {
    "bash": "tailrace completions bash > ~/.local/share/bash-completion/completions/tailrace",
    "zsh": "tailrace completions zsh > ~/.zfunc/_tailrace",
    "fish": "tailrace completions fish > ~/.config/fish/completions/tailrace.fish",
}
_WHYS: Final[Mapping[Shell, str]] = {
    "bash": "and begin a new shell; bash-completion reads that folder",
    "zsh": "with `fpath+=~/.zfunc` before compinit in ~/.zshrc; begin a new shell",
    "fish": "fish reads it by itself",
}

ShellName = Annotated[Shell, Parameter(name="SHELL", help="The shell that is to complete.")]


def completions(shell: ShellName, /) -> int:
    """Print a script with which a shell completes commands, options and their choices.

    It names what this release has: make it anew after an upgrade. Nothing is installed.
    """
    from engine.cli.application import make_application  # noqa: PLC0415 - it names this module

    say_as_is(make_application().generate_completion(prog_name="tailrace", shell=shell).rstrip())
    tell_next(_WAYS[shell], _WHYS[shell])
    return 0

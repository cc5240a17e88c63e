"""The command line: its commands, and what each way of ending means for the exit code.

Strategy: commands are registered by name (`COMMANDS`) and imported when they run, so `--help` and
`--version` load neither a database driver nor the S3 client. A command function answers its exit
code or raises. The list of commands has a line for each; a command's own help is its docstring.

Exit codes: 0 ok, 1 problems found, 2 usage, 69 not reachable, 70 position lost or internal error,
75 superseded or told to end at once, 78 configuration, 130 interrupted.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Final, TypeGuard

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnusedCliTokensError,
)

from engine import __version__
from engine.cli.output import (
    complain,
    complain_about,
    complain_in_json,
    complain_internal,
    flush,
    unwritten,
)
from engine.model.errors import TailraceError

COMMANDS: Final[Mapping[str, str]] = {
    "init": "Write a first configuration, and list the tables that it would capture.",
    "check": "Try what `run` needs, and change nothing but `_tailrace/check/`.",
    "iam": "Print the policies that the bucket and the task role need.",
    "run": "Stream changes until told to stop.",
    "status": "Show how far the pipeline and its snapshots are, from the bucket.",
    "top": "Show a running engine, live in the terminal.",
    "verify": "Prove from the bucket alone that nothing is missing or doubled.",
    "resync": "Ask the running engine for new snapshots of tables, or to cancel them.",
    "pause": "Ask the running engine to read no further, or to pass over tables.",
    "resume": "Ask the running engine to go on with what is paused.",
    "read": "Read a table's changes or rows from the bucket alone.",
    "tail": "Show a table's newest changes, and each new one as it becomes durable.",
    "materialize": "Bring a Delta or Iceberg table, or Parquet files, up to date with a table.",
    "views": "Print SQL that reads the bucket: each table as it is now.",
    "drop": "Drop the slot and the publication of a pipeline that is given up.",
    "config": "Show the configuration, or describe it.",
    "config show": "Print the values in effect and where each came from.",
    "config schema": "Print the JSON Schema of the file.",
    "demo": "Run a database, a bucket and an engine on this machine.",
    "completions": "Print a script with which a shell completes commands and options.",
}
"""Each command with its line in the help, in the order in which one meets them.

Its first word names the module here and its last word the function: `config show` is
`engine.cli.config:show`. A command that others begin with is their group and has no function.
"""

USAGES: Final[Mapping[str, str]] = {
    "resync": "Usage: tailrace resync [OPTIONS] TABLE...",
    "pause": "Usage: tailrace pause [OPTIONS] [TABLE...]",
    "resume": "Usage: tailrace resume [OPTIONS] [TABLE...]",
    "views": "Usage: tailrace views [OPTIONS] ENGINE [TABLE...]",
}
"""The usage of commands that take several tables, for which the library has no word."""

_BEGIN = "Begin with `tailrace demo`, or with `tailrace init` for a database of your own."
_NUMBERS: Final[Mapping[object, str]] = {int: "a whole number", float: "a number"}
"""What an option of that type takes, in words."""

_COMMANDS_HINT = "`tailrace --help` lists the commands"

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def make_application(asked: str = "") -> App:
    """The commands, none of them imported.

    The help of `asked`, the command that is meant, is its docstring. The others have their lines.
    """
    application = App(
        name="tailrace",
        help="Stream the changes of a database into Amazon S3, exactly once and in order.",
        version=f"tailrace {__version__}",
        # Otherwise a Markdown renderer is loaded to print two words.
        version_format="plaintext",
        help_epilogue="" if asked else _BEGIN,
        # Errors and exit codes are decided in `main`.
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    groups = {"": application}
    for number, (name, text) in enumerate(COMMANDS.items()):
        group, _, word = name.rpartition(" ")
        if any(other.startswith(f"{name} ") for other in COMMANDS):
            groups[name] = App(name=word, help=text, sort_key=number)
            groups[group].command(groups[name])
        else:
            module = name.split()[0]
            line = None if name == asked else text
            groups[group].command(
                f"engine.cli.{module}:{word}",
                name=word,
                help=line,
                sort_key=number,
                usage=USAGES.get(name),
            )
    return application


def _asked(arguments: Sequence[str]) -> str:
    """The command that the line begins with; empty where it begins with none."""
    names = (" ".join(arguments[:count]) for count in (2, 1))
    return next((name for name in names if name in COMMANDS), "")


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; the answer is the process's exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    complain_in_json(False)
    try:
        answer = make_application(_asked(given))(given)
        flush()
    except CycloptsError as error:
        complain(*_usage_text(error, _asked(given)))
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout has gone: give the interpreter's last flush somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except SystemExit as ended:
        # So the library that prints the help ends where stdout's reader has gone.
        if isinstance(ended.__context__, BrokenPipeError):
            return EXIT_BROKEN_PIPE
        raise
    except BaseException as error:  # noqa: BLE001 - the last boundary before the operator
        return _told(error)
    return answer if isinstance(answer, int) else EXIT_OK


def _told(error: BaseException) -> int:
    from engine.operate.logs import is_debug, trace_text  # noqa: PLC0415 - 150 ms that only errors need

    is_wanted = is_debug() or os.environ.get("TAILRACE_LOG__LEVEL", "").lower() == "debug"
    trace = trace_text(error) if is_wanted else ""
    found = unwritten(error) if _is_unprinted(error) else _ours(error)
    if found is None:
        complain_internal(error, trace=trace)
        return EXIT_INTERNAL
    complain_about(found, trace=trace)
    return found.exit_code


def _is_unprinted(error: BaseException) -> TypeGuard[OSError]:
    """Whether it was raised where the help and the version are printed."""
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    module = raised.tb_frame.f_globals.get("__name__", "") if raised is not None else ""
    return isinstance(error, OSError) and module.startswith("rich.")


def _ours(error: BaseException) -> TailraceError | None:
    """The error to show: itself, or the first of a group all of whose members are ours."""
    if isinstance(error, TailraceError):
        return error
    if isinstance(error, ExceptionGroup):
        found = [_ours(member) for member in error.exceptions]
        return found[0] if all(found) else None
    return None


def _usage_text(error: CycloptsError, asked: str) -> tuple[str, str]:
    """What is wrong with the command line, and where to look."""
    if isinstance(error, UnknownCommandError):
        # The library's own text would import every command.
        word = error.unused_tokens[0] if error.unused_tokens else ""
        by_word = {command.split()[-1]: command for command in COMMANDS}
        near = get_close_matches(word, by_word, n=1)
        text = f'there is no command "{word}"'
        return text, f"did you mean `tailrace {by_word[near[0]]}`?" if near else _COMMANDS_HINT
    hint = f"`tailrace {asked or 'COMMAND'} --help` lists what it takes"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        word = error.unused_tokens[0]
        is_file = word.endswith(".toml")
        text = f'"{word}" is no argument of this command'
        return text, f"did you mean `-c {word}`?" if is_file else hint
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        return f"{name} needs a value" if name.startswith("-") else f"{name} is missing", hint
    if isinstance(error, CoercionError) and error.token and error.target_type in _NUMBERS:
        option, number = error.token.keyword or "an argument", _NUMBERS[error.target_type]
        return f'{option} takes {number}, not "{error.token.value}"', hint
    text = " ".join(str(error).split()).rstrip(".")
    return text[:1].lower() + text[1:], hint

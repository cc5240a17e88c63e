"""`tailrace init`: a first configuration, asked for or given by options, and what it would capture.

Strategy: everything is asked before anything is written, so a Ctrl-C leaves nothing behind. The
file appears under its name when it is whole and our own loader has taken it.

Invariant: no password is written. A connection string that holds one is refused; where it stands
in an environment variable, the file names the variable.
"""

import asyncio
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from engine import __version__
from engine.cli.options import Json, Usage
from engine.cli.output import ResultUnwritten, say, say_json, say_next, say_table
from engine.cli.questions import asked
from engine.cli.startup import lean_imports
from engine.config import default_log, load
from engine.config.gather import DEFAULT_FILE
from engine.config.keys import BY_PATH
from engine.config.secret_reference import SecretReference
from engine.config.values import Unfit
from engine.config.written import file_text, plain
from engine.model.errors import ConfigurationError, SourceUnavailable, TailraceError
from engine.model.plural import counted
from engine.model.printable import printable
from engine.model.record import matches
from engine.model.schema import TableName

if TYPE_CHECKING:
    from engine.sources.postgres.inventory import Inventory, Listed

TABLES_SHOWN_MAX = 50
ANSWER_SECONDS = 15.0
"""How long the database may take: a firewall that drops packets would take minutes."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USUAL_VARIABLE: Final = "DATABASE_URL"

Output = Annotated[
    Path,
    Parameter(name=["--output", "-o"], metavar="FILE", help="The file to write."),
]
Force = Annotated[
    bool,
    Parameter(
        name="--force",
        negative="",
        show_default=False,
        help="Replace the file where there is one.",
    ),
]
SourceEnv = Annotated[
    str | None,
    Parameter(
        name="--source-env",
        metavar="NAME",
        help="The environment variable that holds the connection string, password and all. The "
        "file says ${NAME}.",
    ),
]
DsnText = Annotated[
    str | None,
    Parameter(
        name="--dsn",
        metavar="DSN",
        help="The connection string, where it has no password: libpq finds that in PGPASSWORD or "
        "~/.pgpass.",
    ),
]
Patterns = Annotated[
    tuple[str, ...],
    Parameter(
        name="--tables",
        metavar="PATTERN",
        negative="",
        show_default=False,
        help="Which tables: schema.table, with * and ?. May be repeated. Without it: every table "
        "of the schemas that were found.",
    ),
]


def _option(name: str, metavar: str, text: str) -> Parameter:
    return Parameter(name=name, metavar=metavar, help=text)


Bucket = Annotated[str | None, _option("--bucket", "NAME", "The bucket's name.")]
Prefix = Annotated[
    str | None,
    _option("--prefix", "PREFIX", "Where its objects go. Without it: the database's name."),
]
Region = Annotated[str | None, _option("--region", "REGION", "The bucket's region.")]
Endpoint = Annotated[str | None, _option("--endpoint-url", "URL", "Another S3 server than AWS's.")]
RoleArn = Annotated[
    str | None, _option("--role-arn", "ARN", "A role to assume, for a bucket in another account.")
]
SlotName = Annotated[
    str | None,
    _option(
        "--slot",
        "NAME",
        "The replication slot's name, `tailrace` by default. No two pipelines share one.",
    ),
]
PublicationName = Annotated[
    str | None, _option("--publication", "NAME", "The publication's name, `tailrace` by default.")
]


def init(
    *,
    output: Output = Path(DEFAULT_FILE),
    force: Force = False,
    source_env: SourceEnv = None,
    dsn: DsnText = None,
    tables: Patterns = (),
    bucket: Bucket = None,
    prefix: Prefix = None,
    region: Region = None,
    endpoint_url: Endpoint = None,
    role_arn: RoleArn = None,
    slot: SlotName = None,
    publication: PublicationName = None,
    json: Json = False,
) -> int:
    """Write a first configuration, with comments, and list the tables that it would capture.

    In a terminal it asks for what no option says. Elsewhere the connection string (--source-env or
    --dsn) and --bucket have to be given. It looks at the database and changes nothing there. Where
    the database cannot be reached, it says so and writes the file all the same. No password is
    written.
    """
    _refuse_existing(output, is_forced=force)
    given = {
        "destination.bucket": bucket,
        "destination.prefix": prefix,
        "destination.region": region,
        "destination.endpoint_url": endpoint_url,
        "destination.role_arn": role_arn,
        "source.slot": slot,
        "source.publication": publication,
        "source.tables": list(tables) or None,
    }
    choices = _Choices({path: value for path, value in given.items() if value is not None})
    for path, value in choices.values.items():
        _require_fit(path, value)
    is_asking = not json and sys.stdin.isatty() and sys.stdout.isatty()
    if not is_asking:
        _require_given(source_env or dsn, bucket)
    source = _source(source_env, dsn)
    found, failure = source.inventory()
    if not json:
        _say_found(found, failure)
    _choose_tables(choices, found, is_asking=is_asking)
    _choose_destination(choices, source, is_asking=is_asking)
    text = file_text({**source.written, **choices.written()}, _heading(choices))
    _write(text, output, source, is_forced=force)
    _say_end(choices, source, found, failure, output, is_json=json)
    return 0


def _require_given(database: str | None, bucket: str | None) -> None:
    """What nobody can be asked for has to be there."""
    missing = [] if database else ["--source-env NAME, or --dsn DSN"]
    missing += [] if bucket else ["--bucket NAME"]
    if missing:
        raise Usage(f"there is no terminal to ask in: add {' and '.join(missing)}")


@dataclass(slots=True)
class _Choices:
    """What was given or answered, by `section.name`."""

    values: dict[str, Any]

    def written(self) -> dict[str, Any]:
        """As the file says it."""
        return {
            path: plain(value) if isinstance(value, str) else [plain(each) for each in value]
            for path, value in self.values.items()
        }


def _require_fit(path: str, value: Any) -> None:
    try:
        _fit(path, value)
    except Unfit as unfit:
        option = path.partition(".")[2].replace("_", "-")
        raise Usage(f"--{option} {unfit.text}: {unfit.hint}".rstrip(": ")) from None


def _fit(path: str, value: Any) -> Any:
    """What the key makes of the value. Raises Unfit. Any: each key has a kind of its own."""
    section, _, name = path.partition(".")
    return BY_PATH[section, name].kind.parse(value)


# --- where the changes come from


@dataclass(frozen=True, slots=True)
class _Source:
    """How the database is reached: `dsn` is what is known of it now, empty for nothing."""

    dsn: str
    variable: str = ""
    written: Mapping[str, Any] = field(default_factory=dict)

    def database(self) -> str:
        from engine.sources.postgres.inventory import database_of  # noqa: PLC0415 - see `inventory`

        with suppress(ConfigurationError):
            return database_of(self.dsn)
        return ""

    def inventory(self) -> "tuple[Inventory | None, TailraceError | None]":
        """What the database has; or why that is not known."""
        if isinstance(_fit("source.dsn", self.dsn or "host=later"), SecretReference):
            text = "AWS keeps the connection string, and nobody asked it now"
            return None, SourceUnavailable(text, hint="`tailrace check` asks it, and connects")
        if not self.dsn:
            text = f"the environment variable {self.variable} is not set here"
            hint = f"export {self.variable}='postgresql://user:password@host:5432/database'"
            return None, SourceUnavailable(text, hint=hint)
        with lean_imports():
            from engine.operate import logs  # noqa: PLC0415 - a wrong option is told before
            from engine.sources.postgres.inventory import take_inventory  # noqa: PLC0415 - likewise

        async def look() -> "Inventory":
            async with asyncio.timeout(ANSWER_SECONDS):
                return await take_inventory(self.dsn)

        logs.configure(default_log())
        try:
            return asyncio.run(look()), None
        except TimeoutError:
            text = f"the database has not answered for {ANSWER_SECONDS:.0f} s"
            return None, SourceUnavailable(text, hint="see whether a firewall stands between")
        except TailraceError as error:
            return None, error


def _source(variable: str | None, dsn: str | None) -> _Source:
    if variable is not None and dsn is not None:
        raise Usage("--source-env and --dsn both say where the database is: keep one of them")
    if variable is not None:
        return _from_variable(variable)
    if dsn is not None:
        return _from_dsn(dsn)
    usual = _USUAL_VARIABLE if _USUAL_VARIABLE in os.environ else ""
    question = (
        "Where is the database? Give the name of an environment variable that holds the\n"
        "connection string, or the string itself where it has no password"
    )
    return asked(question, usual, _from_answer)


def _from_answer(answer: str) -> _Source:
    return _from_variable(answer) if _VARIABLE.fullmatch(answer) else _from_dsn(answer)


def _from_variable(name: str) -> _Source:
    if not _VARIABLE.fullmatch(name):
        raise Usage(f'"{name}" is no name of an environment variable')
    if name.startswith("TAILRACE_"):
        raise Usage(
            f"{name} begins with TAILRACE_, and such variables are keys of the configuration: "
            "name another one"
        )
    dsn = os.environ.get(name, "")
    if dsn:
        _holds_secret(dsn, f"what {name} holds")
    return _Source(dsn, name, {"source.dsn": f"${{{name}}}"})


def _from_dsn(dsn: str) -> _Source:
    if _holds_secret(dsn, "the connection string"):
        raise Usage(
            "the connection string holds a password, which would stand in the file: put it into an "
            f"environment variable, and give that one's name (--source-env {_USUAL_VARIABLE})"
        )
    return _Source(dsn, written={"source.dsn": plain(dsn)})


def _holds_secret(dsn: str, what: str) -> bool:
    from engine.sources.postgres.inventory import holds_secret  # noqa: PLC0415 - it loads the driver

    try:
        is_elsewhere = isinstance(_fit("source.dsn", dsn), SecretReference)
        return not is_elsewhere and holds_secret(dsn)
    except Unfit as unfit:
        raise Usage(f"{what} {unfit.text}: {unfit.hint}") from None
    except ConfigurationError as error:
        text = str(error).removeprefix("source.dsn ")
        raise Usage(f"{what} {text}: {error.hint}") from None


# --- what is chosen


def _choose_tables(choices: _Choices, found: "Inventory | None", *, is_asking: bool) -> None:
    if "source.tables" in choices.values:
        return
    schemas = sorted({each.name.schema for each in found.tables}) if found else []
    patterns = [f"{schema}.*" for schema in schemas] or ["public.*"]
    if is_asking:
        patterns = asked(
            "Which tables? Patterns with a blank between, such as public.* or sales.orders",
            " ".join(patterns),
            _patterns,
        )
    choices.values["source.tables"] = patterns


def _patterns(answer: str) -> list[str]:
    patterns = answer.replace(",", " ").split()
    _require_fit("source.tables", patterns)
    return patterns


def _choose_destination(choices: _Choices, source: _Source, *, is_asking: bool) -> None:
    values = choices.values
    if "destination.bucket" not in values:
        values["destination.bucket"] = asked("Which bucket?", "", _checked("destination.bucket"))
    if "destination.prefix" not in values:
        values["destination.prefix"] = _prefix(source, is_asking=is_asking)
    if "destination.region" not in values and is_asking:
        usual = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "-"
        question = "Which region is it in? - leaves that to AWS's default chain"
        answer = asked(question, usual, _checked("destination.region", but="-"))
        if answer != "-":
            values["destination.region"] = answer


def _prefix(source: _Source, *, is_asking: bool) -> str:
    usual = source.database()
    with suppress(Unfit):
        if usual:
            _fit("destination.prefix", usual)
            if not is_asking:
                return usual
    if not is_asking:
        raise Usage("nothing says which prefix: add --prefix PREFIX")
    question = "Which prefix? Everything of this pipeline goes below it"
    return asked(question, usual, _checked("destination.prefix"))


def _checked(path: str, *, but: str | None = None) -> Callable[[str], str]:
    def check(answer: str) -> str:
        if answer != but:
            _require_fit(path, answer)
        return answer

    return check


# --- the file


def _refuse_existing(output: Path, *, is_forced: bool) -> None:
    if output.exists() and not is_forced:
        raise Usage(f"{output} is there already: add --force to replace it, or -o FILE")


def _heading(choices: _Choices) -> str:
    values = choices.values
    return (
        f"Into s3://{values['destination.bucket']}/{values['destination.prefix']}. "
        f"Begun by `tailrace init` of release {__version__}.\n"
        "\n"
        "${NAME} stands for the environment variable NAME. A key behind a # has the value that it "
        "has by default, or none. Every key: `tailrace config schema`, and "
        "config/tailrace.reference.toml beside the source."
    )


def _write(text: str, output: Path, source: _Source, *, is_forced: bool) -> None:
    """Write it as a whole. Raises ResultUnwritten and, where it is there already, Usage."""
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        # A connection string that is not known now will be one then.
        known = {source.variable: source.dsn or "host=later"} if source.variable else {}
        part.write_text(text, encoding="utf-8")
        load(part, {**known, "PGHOST": "later"})
        if is_forced:
            part.replace(output)
        else:
            # Unlike a rename, this never replaces what somebody wrote meanwhile.
            os.link(part, output)
    except FileExistsError:
        _refuse_existing(output, is_forced=False)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        hint = "name another place with -o FILE"
        raise ResultUnwritten(f"{output} could not be written: {reason}", hint=hint) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


# --- what is told


def _say_found(found: "Inventory | None", failure: TailraceError | None) -> None:
    if found is not None:
        release = f"{found.version // 10000}.{found.version % 10000}"
        count = counted(len(found.tables), "table")
        place, role = printable(found.place), printable(found.role)
        say(f"PostgreSQL {release} at {place}, as {role}: {count}")
        _say_tables(found)
        if found.fault is not None:
            say(f"\nwarning: {printable(str(found.fault))}")
            say(f"         {printable(found.fault.hint)}")
    elif failure is not None:
        say(f"the tables are not known: {printable(str(failure))}")
        say(f"    {printable(failure.hint)}")
    say()


def _say_tables(found: "Inventory") -> None:
    # Those that somebody has to do something about come first.
    ordered = sorted(found.tables, key=lambda each: not each.reason)
    rows = [(str(each.name), _table_text(each)) for each in ordered[:TABLES_SHOWN_MAX]]
    say_table(rows, ("left", "prose"), indent="    ")
    if len(ordered) > TABLES_SHOWN_MAX:
        say(f"    and {len(ordered) - TABLES_SHOWN_MAX} more: `tailrace init --json` has all")


def _table_text(each: "Listed") -> str:
    if not each.reason:
        return "can be captured"
    remedy = f"; `{each.remedy}` would change that" if each.remedy else ""
    return f"cannot be captured: {each.reason}{remedy}"


def _is_chosen(choices: _Choices, table: TableName) -> bool:
    return any(matches(pattern, table) for pattern in choices.values["source.tables"])


def _say_end(
    choices: _Choices,
    source: _Source,
    found: "Inventory | None",
    failure: TailraceError | None,
    output: Path,
    *,
    is_json: bool,
) -> None:
    chosen = [each for each in found.tables if _is_chosen(choices, each.name)] if found else []
    if is_json:
        say_json(_as_json(found, failure, choices, output))
        return
    say(f"{printable(str(output))} is written")
    if found is not None:
        count = len([each for each in chosen if not each.reason])
        left = f", {len(chosen) - count} cannot be" if len(chosen) > count else ""
        say(f"it names {counted(len(chosen), 'table')}: {count} can be captured{left}")
    command = (
        "tailrace check"
        if output == Path(DEFAULT_FILE)
        else f"tailrace check -c {quote(str(output))}"
    )
    if source.variable and not source.dsn:
        say_next(f"export {source.variable} with the connection string, then `{command}`")
    else:
        say_next(command, "tries everything that a run needs")


def _as_json(
    found: "Inventory | None", failure: TailraceError | None, choices: _Choices, output: Path
) -> dict[str, object]:
    return {
        "file": str(output),
        "source": None if found is None else {"place": found.place, "version": found.version},
        "problem": None if failure is None else str(failure),
        "tables": [
            {
                "table": str(each.name),
                "chosen": _is_chosen(choices, each.name),
                "reason": each.reason or None,
                "remedy": each.remedy or None,
            }
            for each in (found.tables if found else ())
        ],
    }

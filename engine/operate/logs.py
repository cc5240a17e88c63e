"""Logs: constant lower-case text plus fields, to stderr, as JSON or as text.

Strategy: our modules log through structlog, libraries through the standard library. Both end in one
place, with one format. Steady state is silent. WARNING means: recovered, and nothing lost. ERROR
means: an operator must act.

Invariant: fields are shown by an allow-list. A field that is not named here is written as `(not
shown)`, so somebody has to decide on a new field before its value leaves the process. What
libraries log is never below WARNING (the S3 client's debug log holds signatures), and is cut to one
line.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import orjson
import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from engine.config import LogConfiguration
from engine.model.errors import TailraceError
from engine.model.printable import printable, printable_json
from engine.operate.log_writer import LogWriter

FIELDS: Final = frozenset(
    """
    address attempt batches bucket chunks code column columns configuration count cpu_seconds
    database destination durable_commit_us durable_position entries entry epoch error error_type
    errors etag event exit_code failures first frontier generation hint host is_failover key
    keys kind kinds lag_seconds last level limit_bytes limit_seconds logger memory_bytes missing
    object_count objects phase pid pipeline planned port position prefix previous progress range
    raw_bytes reason release request retry_seconds retryable row_count rows rows_estimate
    seconds seconds_left seq server_version signal size_bytes source sql subject table
    table_count tables text timestamp traceback uploads url version versions wait_seconds writer
    writer_id
    """.split()  # noqa: SIM905 - a hundred words read better without quotes
)
HIDDEN: Final = "(not shown)"

_writers: list[LogWriter] = []
LIBRARY_TEXT_CHARACTERS_MAX = 300
TRACE_ERRORS_MAX: Final = 50
TRACE_FRAMES_MAX: Final = 40


def configure(
    configuration: LogConfiguration, *, stream: TextIO | None = None, in_thread: bool = False
) -> None:
    """Send everything that is logged from now on to `stream`, by default stderr.

    `in_thread`: nobody who logs waits for it, see `engine.operate.log_writer`. May be called again.
    """
    stream = sys.stderr if stream is None else stream
    level = logging.getLevelNamesMapping()[configuration.level.upper()]
    is_debug = level <= logging.DEBUG
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            _Exceptions(with_traceback=is_debug),
            _allow_listed,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(_writer(configuration, stream) if in_thread else stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _Exceptions(with_traceback=is_debug), _library_text],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _printable,
                *(() if configuration.is_json(stream) else (_lists_as_json,)),
                _renderer(configuration, stream),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    # Our own loggers are named after their modules; everything else stays at WARNING.
    logging.getLogger("engine").setLevel(level)
    logging.captureWarnings(capture=True)


def is_for_people(configuration: LogConfiguration) -> bool:
    """Whether somebody reads the log in a terminal, as text."""
    return sys.stderr.isatty() and not configuration.is_json(sys.stderr)


def is_debug() -> bool:
    """Whether tracebacks may be shown."""
    return logging.getLogger("engine").isEnabledFor(logging.DEBUG)


def flush() -> None:
    """Hand what was logged to the operating system, for a process about to end. Takes a moment."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    for writer in _writers:
        writer.drain()


def dropped_total() -> int:
    """Lines that nobody took from stderr, and that were not kept."""
    return sum(writer.dropped_total for writer in _writers)


def _writer(configuration: LogConfiguration, stream: TextIO) -> LogWriter:
    render = _renderer(configuration, stream)

    def dropped(count: int) -> str:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        event: EventDict = {"event": "log lines dropped", "level": "warning"}
        event.update(timestamp=now, count=count)
        return f"{render(None, 'warning', event)!s}\n"

    _writers[:] = [LogWriter(stream.fileno(), dropped)]
    return _writers[0]


def trace_text(error: BaseException) -> str:
    """The error, its causes and where each was raised; texts of our own errors only.

    Each error is told once, however they refer to each other. `raise cause from group` makes a
    ring: the group, its member, and that member's cause, which is the group again.
    """
    lines: list[str] = []
    told: set[int] = set()
    waiting = [(error, "")]
    while waiting and len(told) < TRACE_ERRORS_MAX:
        cause, indent = waiting.pop()
        if id(cause) in told:
            continue
        told.add(id(cause))
        lines.append(indent + _named(cause))
        lines.extend(f"{indent}  {frame}" for frame in _frames(cause))
        # A group's members are told first: what is put here last is told next.
        before = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        if before is not None:
            waiting.append((before, indent))
        if isinstance(cause, BaseExceptionGroup):
            waiting.extend((member, f"{indent}  ") for member in reversed(cause.exceptions))
    return "\n".join(lines)


def _frames(error: BaseException) -> list[str]:
    # Only the innermost frames are told: an endless recursion has a thousand. No line of any source
    # is read.
    frames = traceback.StackSummary.extract(
        traceback.walk_tb(error.__traceback__), limit=-TRACE_FRAMES_MAX, lookup_lines=False
    )
    return [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]


def _named(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {printable(str(error))}" if isinstance(error, TailraceError) else name


class _Exceptions:
    """`exc_info` becomes the error's type and text, and its traceback where that is wanted.

    Only our own errors say their text: a driver's may carry row values.
    """

    def __init__(self, *, with_traceback: bool) -> None:
        self._with_traceback = with_traceback

    def __call__(self, logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
        del logger, method
        found = event_dict.pop("exc_info", None)
        if found is True:
            found = sys.exc_info()
        error = found[1] if isinstance(found, tuple) else found
        if isinstance(error, BaseException):
            event_dict["error_type"] = type(error).__name__
            if isinstance(error, TailraceError):
                event_dict["error"] = str(error)
            if self._with_traceback:
                event_dict["traceback"] = trace_text(error)
        return event_dict


def _allow_listed(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    del logger, method
    return {name: value if name in FIELDS else HIDDEN for name, value in event_dict.items()}


def _library_text(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    del logger, method
    record: logging.LogRecord = event_dict["_record"]
    first_line = str(event_dict["event"]).partition("\n")[0]
    event_dict["event"] = "a library says"
    event_dict["logger"] = record.name
    event_dict["text"] = first_line[:LIBRARY_TEXT_CHARACTERS_MAX]
    return event_dict


def _printable(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """For the text format, which writes a text without blanks as it is."""
    del logger, method
    return {
        name: printable(value, keep="\n\t") if isinstance(value, str) else value
        for name, value in event_dict.items()
    }


def _lists_as_json(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    del logger, method
    return {
        name: _JsonText(value) if isinstance(value, list | tuple) else value
        for name, value in event_dict.items()
    }


class _JsonText:
    """Stands for a list in the text format, which would write it as Python does."""

    def __init__(self, value: list[object] | tuple[object, ...]) -> None:
        self._text = printable_json(json.dumps(value, default=str, ensure_ascii=False))

    def __repr__(self) -> str:
        return self._text


def _renderer(configuration: LogConfiguration, stream: TextIO) -> Processor:
    if configuration.is_json(stream):
        return structlog.processors.JSONRenderer(serializer=_json)
    return structlog.dev.ConsoleRenderer(colors=stream.isatty())


def _json(event_dict: EventDict, **_: Any) -> str:
    rest = dict(event_dict)
    first = {name: rest.pop(name, "") for name in ("timestamp", "level", "event")}
    try:
        text = orjson.dumps(first | rest, default=str).decode()
    except TypeError:
        # Half of a surrogate pair cannot be written in UTF-8. A file's name may hold one.
        return json.dumps(first | rest, default=str)
    return printable_json(text)

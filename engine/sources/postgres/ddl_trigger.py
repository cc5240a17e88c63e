"""The event trigger that writes each DDL statement into the log, as a message of its own.

It is never made by us: a superuser runs the SQL that `tailrace check` prints. Where logical
messages are published (`source.messages`), each statement is a record in its place among the
changes.

Strategy: one function for both events. It writes within the statement's own transaction, so what is
rolled back is never told. Its search path is fixed, and it is not run for temporary tables.
"""

from typing import Final

from engine.model.trial import Finding
from engine.sources.postgres.session import Session

DDL_PREFIX: Final = "tailrace.ddl"
"""The prefix of the messages."""

TRIGGER: Final = "tailrace_ddl"

DDL_SQL: Final = f"""
CREATE FUNCTION public.{TRIGGER}() RETURNS event_trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
  touched record;
BEGIN
  IF tg_event = 'sql_drop' THEN
    FOR touched IN SELECT * FROM pg_event_trigger_dropped_objects()
        WHERE NOT is_temporary AND (original OR object_type LIKE '%column') LOOP
      PERFORM pg_logical_emit_message(true, '{DDL_PREFIX}', json_build_object(
        'tag', tg_tag, 'type', touched.object_type, 'object', touched.object_identity,
        'oid', touched.objid::int8, 'dropped', true, 'query', left(current_query(), 10000))::text);
    END LOOP;
  ELSE
    FOR touched IN SELECT * FROM pg_event_trigger_ddl_commands()
        WHERE NOT in_extension AND schema_name IS DISTINCT FROM 'pg_temp' LOOP
      PERFORM pg_logical_emit_message(true, '{DDL_PREFIX}', json_build_object(
        'tag', touched.command_tag, 'type', touched.object_type,
        'object', touched.object_identity, 'oid', touched.objid::int8, 'dropped', false,
        'query', left(current_query(), 10000))::text);
    END LOOP;
  END IF;
END $body$;
CREATE EVENT TRIGGER {TRIGGER} ON ddl_command_end EXECUTE FUNCTION public.{TRIGGER}();
CREATE EVENT TRIGGER {TRIGGER}_drop ON sql_drop EXECUTE FUNCTION public.{TRIGGER}();
""".strip()  # noqa: S608 - of constants.

_THERE: Final = """
SELECT pg_catalog.count(*) FROM pg_catalog.pg_event_trigger t
WHERE t.evtname OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.name[])
  AND t.evtenabled OPERATOR(pg_catalog.<>) 'D'::pg_catalog."char"
"""


async def judge_ddl(session: Session) -> Finding:
    """Whether statements are written into the log, and if not, by which SQL they would be.

    Raises SourceError. Cancellation changes nothing.
    """
    wanted = [TRIGGER, f"{TRIGGER}_drop"]
    [(count,)] = await session.rows(_THERE, wanted, doing="looking for the event trigger")
    if count == len(wanted):
        return Finding(f"the event trigger {TRIGGER} records each DDL statement as a message")
    return Finding(
        "DDL statements are not recorded: a table's version says what changed, not by which"
        " statement",
        # On one line, as every hint.
        f"where you want them, run as a superuser: {' '.join(DDL_SQL.split())}",
    )

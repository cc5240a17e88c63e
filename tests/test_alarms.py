"""Alarms: what stands, since when, and what is logged of it."""

from structlog.testing import capture_logs

from engine.operate.alarms import Alarms, Cause


class Observer:
    def __init__(self) -> None:
        self.counts: list[tuple[str, int]] = []

    def alarms(self, code: str, count: int) -> None:
        self.counts.append((code, count))


def test_an_alarm_stands_since_it_was_first_set() -> None:
    now = iter((10, 20, 30))
    alarms = Alarms(lambda: next(now))

    alarms.set("not-published", "a table is left out", subject="public.a", hint="publish it")
    alarms.set("not-published", "still left out", subject="public.a")

    (alarm,) = alarms.standing()
    assert (alarm.subject, alarm.text, alarm.since_us) == ("public.a", "still left out", 10)


def test_a_condition_that_lasts_is_logged_twice() -> None:
    alarms = Alarms(lambda: 0)

    with capture_logs() as lines:
        for _ in range(3):
            alarms.set("synchronous", "commits wait for this engine")
        alarms.clear("synchronous")
        alarms.clear("synchronous")

    assert [line["event"] for line in lines] == ["alarm", "alarm over"]
    assert alarms.standing() == ()


def test_a_look_replaces_what_stood() -> None:
    observer = Observer()
    alarms = Alarms(lambda: 0, observer)
    alarms.set("other", "stays")
    alarms.replace("not-published", {"a": Cause("left out"), "b": Cause("left out")})

    alarms.replace("not-published", {"b": Cause("left out"), "c": Cause("left out")})
    alarms.replace("not-published", {"b": Cause("left out"), "c": Cause("left out")})

    assert [alarm.subject for alarm in alarms.standing()] == ["b", "c", ""]
    assert observer.counts == [("other", 1), ("not-published", 2), ("not-published", 2)]
    assert alarms.is_set("not-published", "c")
    assert not alarms.is_set("not-published", "a")


def test_thousands_of_subjects_make_a_few_lines() -> None:
    alarms = Alarms(lambda: 0)

    with capture_logs() as lines:
        alarms.replace("not-published", {f"t{n}": Cause("left out") for n in range(5000)})
        alarms.replace("not-published", {})

    assert len(lines) == 42
    assert alarms.count == 0


def test_a_long_list_is_cut_and_counted() -> None:
    alarms = Alarms(lambda: 0)
    alarms.replace("not-published", {f"t{n}": Cause("left out") for n in range(200)})

    shown = alarms.standing(limit=3)

    assert len(shown) == 3
    assert alarms.count == 200

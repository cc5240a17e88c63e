"""The page of `/`, in Debian's Chromium: a live engine's whole life, and still statuses.

One browser and one server for all tests. Each test has a page of its own, in which nothing may be
asked of another origin and nothing may go wrong in the console.
"""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from msgspec.structs import replace
from playwright.async_api import Browser, Page, async_playwright
from prometheus_client import CollectorRegistry

import shown_status
from databases import Database
from engine.config import Address, Secret
from engine.journal.snapshot_standing import SnapshotStanding
from engine.operate.access import Access
from engine.operate.alarms import Alarm
from engine.operate.bucket_watch import BucketState
from engine.operate.events import Event
from engine.operate.http_server import HttpServer
from engine.operate.status import NotCaptured, Phase, Status
from engine.servers.fault_proxy import HttpFaultProxy, Stall
from engine.servers.servers import EmbeddedS3
from load_tests.engine_process import EngineProcess, Pipeline, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

DESKTOP: Final = (1440, 900)
PHONE: Final = (360, 740)
FITS: Final = "document.documentElement.scrollWidth <= innerWidth"
ASKED: Final = "document.querySelector('#asked').textContent !== 'asking the engine…'"
ROWS: Final = "document.querySelectorAll('#table-rows tr').length"
TOKEN: Final = "0123456789abcdef-of-the-port"


@dataclass
class Shown:
    """The server's engine: `status` is what it says of itself."""

    browser: Browser
    status: Status = field(default_factory=shown_status.good)
    access: Access = field(default_factory=Access)

    @asynccontextmanager
    async def served(self, port: int = 0) -> AsyncIterator[Address]:
        async with HttpServer(
            Address("127.0.0.1", port),
            lambda: self.status,
            CollectorRegistry(),
            access=self.access,
            find_tables=shown_status.found,
        ) as server:
            assert server.address is not None
            yield server.address

    @asynccontextmanager
    async def page(
        self,
        status: Status | None = None,
        *,
        size: tuple[int, int] = DESKTOP,
        may_say: str = "nothing",
        **options: Any,
    ) -> AsyncIterator[Page]:
        """A page that shows `status`. `may_say`: what the browser's console may complain of."""
        self.status = status or shown_status.good()
        async with (
            self.served() as address,
            self.opened(f"http://{address}/", size=size, may_say=may_say, **options) as page,
        ):
            yield page

    @asynccontextmanager
    async def opened(
        self,
        url: str,
        *,
        size: tuple[int, int] = DESKTOP,
        may_say: str = "Failed to load resource",
        **options: Any,
    ) -> AsyncIterator[Page]:
        """As `page`, of the server at `url`."""
        width, height = size
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, **options
        )
        asked: list[str] = []
        complaints: list[str] = []
        page = await context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.set_default_timeout(60_000)
        try:
            await page.goto(url)
            await reached(page, ASKED)
            yield page
        finally:
            await context.close()
        assert [each for each in asked if not each.startswith((url, "data:,"))] == []
        assert [each for each in complaints if may_say not in each] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shown() -> AsyncIterator[Shown]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        yield Shown(browser)
        await browser.close()


async def text(page: Page, selector: str) -> str:
    return await page.locator(selector).inner_text()


async def reached(page: Page, condition: str) -> None:
    """Wait until it is true there. The page's policy forbids Playwright's own way, by `eval`."""
    await until(lambda: page.evaluate(condition), condition)


async def ask(page: Page) -> None:
    """Let it ask now, and wait until it shows the answer."""
    await page.evaluate("ask()")


# --- a live engine


@dataclass
class Live:
    """An engine with a token, between a real database and a bucket that a proxy stands before."""

    engine: EngineProcess
    database: Database
    proxy: HttpFaultProxy
    place: str


@pytest_asyncio.fixture(loop_scope="module")
async def live(
    database: Database, s3: EmbeddedS3, bucket: str, tmp_path: Path
) -> AsyncIterator[Live]:
    database.execute("CREATE TABLE orders (id integer PRIMARY KEY, note text)")
    async with HttpFaultProxy(s3.port) as proxy:
        pipeline = Pipeline(
            {
                "source": {"dsn": database.dsn, "slot": database.name},
                "destination": {
                    "bucket": bucket,
                    "prefix": "team/shop",
                    "endpoint_url": proxy.endpoint_url,
                },
                "chunk": {"max_age": "200ms"},
                "engine": {"append_interval": "100ms"},
                "http": {"token": TOKEN},
            },
            s3.environment,
        )
        with EngineProcess(pipeline, tmp_path, "run", "run") as engine:
            await engine.reaches("streaming")
            yield Live(engine, database, proxy, f"s3://{bucket}/team/shop")


async def test_a_live_engine_is_shown_as_it_is_until_it_is_killed(shown: Shown, live: Live) -> None:
    async with AsyncExitStack() as stack:
        page = await stack.enter_async_context(
            shown.opened(
                f"http://127.0.0.1:{live.engine.http_port}/",
                http_credentials={"username": "anybody", "password": TOKEN},
            )
        )

        # What it shows is what it says.
        live.database.execute(
            "INSERT INTO orders SELECT id, 'a-row-value' FROM generate_series(1, 500) AS id"
        )
        await reached(page, "shown.objects_total > 0 && shown.durable_lag === 0")
        status = await page.evaluate("shown")
        assert await text(page, "#state-title") == "Streaming"
        assert await page.locator("#state").get_attribute("class") == "card state good"
        assert live.place in await text(page, "#route")
        assert await text(page, "#figure-durable") == "0.0 s"
        assert await text(page, "#under-rows") == "500 rows since the start"
        assert await text(page, "#bucket-verdict") == "answers"
        [row] = await page.locator("#table-rows tr").all_inner_texts()
        assert row.startswith("public.orders")
        assert status["busiest"][0]["last_object"].rpartition("/")[2] in row
        assert (await text(page, "#memory")).endswith(" MiB")
        found = await page.evaluate("asked('tables?name=C.ORD').then((answer) => answer.json())")
        assert (found["total"], found["tables"][0]["table"]) == (1, "public.orders")
        assert await page.evaluate("asked('tables?name=x').then((answer) => answer.json())") == {
            "total": 0,
            "tables": [],
        }
        everything = await page.content()
        assert "a-row-value" not in everything + json.dumps(status)
        assert TOKEN not in everything + json.dumps(status)

        # A bucket that takes connections and says nothing is no green dot.
        rule = live.proxy.inject(Stall(600.0))
        live.database.execute("INSERT INTO orders VALUES (1000, 'x')")
        await page.wait_for_selector("#bucket-verdict.bad")
        assert rule.hits > 0
        assert "does not answer" in await text(page, "#bucket-verdict")
        assert "the bucket does not answer" in await text(page, "#state-title")
        assert await page.locator("#state").get_attribute("class") != "card state good"

        # Killed: the page says so, and nothing below looks well any more.
        live.engine.kill()
        await page.wait_for_selector("#lost:not([hidden])")
        assert (await text(page, "#lost-title")).startswith("The engine does not answer since ")
        assert await page.locator("#state").is_hidden()
        assert await page.locator("#parts .icon:visible").count() == 0
        assert await page.title() == "! No answer · Tailrace"


# --- what it says in which state


async def test_every_word_of_the_engine_has_one_on_the_page(shown: Shown) -> None:
    async with shown.page() as page:
        words = await page.evaluate("[PHASES, BUCKET, SNAPSHOTS].map(Object.keys)")

    assert [set(each) for each in words] == [
        set(get_args(Phase)),
        set(get_args(BucketState)),
        {*get_args(SnapshotStanding), "none"},
    ]


async def test_a_bad_hour_is_told_with_what_mends_it(shown: Shown) -> None:
    async with shown.page(shown_status.bad()) as page:
        assert await text(page, "#state-title") == "Streaming, 3 alarms"
        assert await page.locator("#state").get_attribute("class") == "card state bad"
        assert await text(page, "#state-todo") == "what mends it"
        alarms = await page.locator("#alarm-list li").all_inner_texts()
        assert [each.split("\n")[0] for each in alarms] == [
            "public.table_0007: changes are missing",
            "the slot has 14 minutes left",
            "and 1 more: /status lists the oldest, the log all of them",
        ]
        assert "What to do: tailrace resync" in alarms[0]
        assert await text(page, "#retention-text") == (
            "9.0 GiB of log kept for us, of 10.0 GiB at most"
        )
        assert await text(page, "#retention-left") == "1.0 GiB left: 14 min at this rate"
        assert await text(page, "#backpressure") == "Reading waits until there is room."
        assert "REPLICA IDENTITY FULL" in await text(page, "#left-out-rows")
        assert "44 %, 8 of 20 ranges" in await text(page, "#snapshot-rows")
        rows = await page.locator("#table-rows tr").all_inner_texts()
        assert "44 %, 65 s left" in rows[1]
        assert "paused" in rows[2]


async def test_a_snapshot_with_ranges_left_is_never_shown_as_whole(shown: Shown) -> None:
    reading = replace(shown_status.progress("public.orders", 100, 100), seconds_left=None)
    tables = (
        replace(shown_status.table(0, "public.orders"), snapshot_progress=reading),
        replace(shown_status.table(1, "public.nokey"), snapshot="none"),
    )
    status = replace(shown_status.good(), snapshots=(reading,), snapshots_in_all=reading)

    async with shown.page(replace(status, busiest=tables, tables_total=2), size=PHONE) as page:
        seen = await text(page, "#snapshot-rows")
        captured = await text(page, "#table-rows")
        fits = await page.evaluate(FITS)

    assert "99 %, 8 of 20 ranges" in seen
    assert "99 %" in captured
    # A label is never followed by nothing.
    assert "–" in captured.split("public.nokey")[1]
    assert fits


async def test_a_hundred_alarms_leave_room_for_the_rest(shown: Shown) -> None:
    alarms = tuple(Alarm("gap", f"public.t{number}", "rows", "", 1) for number in range(100))
    left_out = tuple(NotCaptured(f"public.t{number}", "no key", "") for number in range(100))
    status = replace(
        shown_status.good(),
        alarms=alarms,
        alarms_total=120,
        not_captured=left_out,
        not_captured_total=150,
    )
    async with shown.page(status) as page:
        assert await page.locator("#alarm-list li").count() == 5
        assert await page.locator("#left-out-rows tr").count() == 20
        assert "150, of which the first 100" in await text(page, "#left-out-count")

        await page.locator("#alarms-more").click()
        await ask(page)
        assert await page.locator("#alarm-list li").count() == 101
        assert (await text(page, "#alarm-list li:last-child")).startswith("and 20 more")
        await page.locator("#alarms-more").click()
        assert await page.locator("#alarm-list li").count() == 5


async def test_each_lag_stands_under_its_own_name(shown: Shown) -> None:
    status = replace(
        shown_status.good(), lag_seconds=None, lag=None, durable_lag_seconds=90.0, durable_lag=2048
    )
    async with shown.page(status) as page:
        cards = [
            each.replace("\n\n", "\n")
            for each in await page.locator("#plots .card").all_inner_texts()
        ]

    assert cards[0].split("\n")[:2] == ["Written, not yet read", "not known"]
    assert cards[1].split("\n")[:3] == [
        "Read, not yet durable",
        "90 s",
        "2.0 KiB of log to publish",
    ]


async def test_plots_of_a_young_engine_span_its_age_and_not_the_hour(shown: Shown) -> None:
    young = replace(shown_status.good(), history=shown_status.history(12))
    async with shown.page(young) as page:
        of_young = await page.locator("#plots .axis").first.inner_text()
        [left, *_] = await page.evaluate(LINE)
        shown.status = shown_status.good()
        await ask(page)
        of_old = await page.locator("#plots .axis").first.inner_text()

    assert of_young.split() == ["5", "min", "ago", "now"]
    assert of_old.split() == ["1", "h", "ago", "now"]
    assert 590 < left < 610, "two of five minutes"


LINE: Final = """() => document.querySelector('#plot-rows .line').getAttribute('d')
  .slice(1).split(/[L ]/).map(Number)"""


async def test_a_page_that_nobody_looks_at_does_not_ask(shown: Shown) -> None:
    async with shown.page() as page:
        hidden = await page.evaluate(AS_SEEN, False)
        looked_at = await page.evaluate(AS_SEEN, True)

    assert (hidden, looked_at) == (0, 1)


AS_SEEN: Final = """async (isSeen) => {
  Object.defineProperty(document, 'hidden', { value: !isSeen, configurable: true });
  const later = window.setTimeout;
  let planned = 0;
  window.setTimeout = () => { planned += 1; };
  await ask();
  window.setTimeout = later;
  return planned;
}"""


@pytest.mark.parametrize("state", ["silent", "failing", "slow", "unknown"])
async def test_a_bucket_that_does_not_answer_is_never_green(
    shown: Shown, state: BucketState
) -> None:
    silent = shown_status.silent()
    async with shown.page(replace(silent, bucket=replace(silent.bucket, state=state))) as page:
        assert await page.locator("#bucket-verdict.good").count() == 0
        is_stalled = state in {"silent", "failing"}
        assert await page.locator("#state.good").count() == (0 if is_stalled else 1)
        assert ("bucket" in await text(page, "#state-title")) is is_stalled


async def test_an_engine_that_is_gone_and_comes_back_is_told_at_once(shown: Shown) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(AsyncExitStack())
        address = await server.enter_async_context(shown.served())
        page = await stack.enter_async_context(shown.opened(f"http://{address}/"))
        before = await text(page, "#figure-durable")

        await server.aclose()
        await ask(page)
        assert "does not answer since" in await text(page, "#lost-title")
        assert await page.locator("#state").is_hidden()
        assert await text(page, "#announced") == "The engine does not answer"
        assert await text(page, "#figure-durable") == before

        shown.access = Access(Secret(TOKEN))
        stack.callback(setattr, shown, "access", Access())
        await server.enter_async_context(shown.served(address.port))
        await ask(page)
        assert (await text(page, "#lost-text")).startswith("It wants its token again.")

        await server.aclose()
        shown.access = Access()
        await server.enter_async_context(shown.served(address.port))
        await ask(page)
        assert await page.locator("#lost").is_hidden()
        assert await text(page, "#state-title") == "Streaming"


# --- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_axe_finds_nothing(shown: Shown, size: tuple[int, int], scheme: str) -> None:
    async with shown.page(shown_status.bad(), size=size, color_scheme=scheme) as page:
        assert await violations(page) == []
        assert await page.evaluate(FITS)

        await page.evaluate("showLost('Nobody listens there.', 'See whether it runs.')")
        assert await violations(page) == []


async def violations(page: Page) -> list[str]:
    found = (await Axe().run(page)).response
    assert len(found["passes"]) > 20
    return [
        f"{each['id']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


async def test_everything_is_reached_and_used_by_the_keyboard_alone(shown: Shown) -> None:
    async with shown.page(shown_status.bad()) as page:
        reached: list[str] = []
        while True:
            await page.keyboard.press("Tab")
            focus = await page.evaluate(FOCUS)
            if focus is None or focus["what"] in reached:
                break
            reached.append(focus["what"])
            assert focus["outline"] == "solid 2px", focus
            if focus["what"] == "plot-rows":
                await page.keyboard.press("Home")
                assert "4,000" not in await text(page, "#figure-rows")
                assert "60 min ago" in await text(page, "#under-rows")
                assert "rows/s" in (
                    await page.locator("#plot-rows").get_attribute("aria-valuetext") or ""
                )
            if focus["what"] == "Table":
                await page.keyboard.press("Enter")
                assert await page.locator("th[aria-sort]").inner_text() == "Table"
                await page.keyboard.press("Enter")
                assert (await page.locator("#table-rows tr").first.inner_text()).startswith(
                    "public.table_0023"
                )
            if focus["what"] == "filter":
                await page.keyboard.type("_001")
                assert await page.locator("#table-rows tr").count() == 10
                await page.keyboard.press("ControlOrMeta+A")
                await page.keyboard.press("Delete")
            if focus["what"] == "tables-more":
                await page.keyboard.press("Space")
                assert await page.locator("#table-rows tr").count() == 24
            if focus["what"] == "zone":
                await page.keyboard.press("Space")
                assert await text(page, "#zone-text") == "Times are those of UTC."

    assert reached == [
        "zone",
        *("plot-unread", "plot-durable", "plot-rows", "plot-bytes"),
        "filter",
        *("Table", "Rate", "Rows", "Queue", "Last object", "Version"),
        *("tables-more", "events-more"),
        *("/status", "/tables", "/metrics", "/readyz", "/livez"),
    ]


FOCUS: Final = """() => {
  const focused = document.activeElement;
  if (focused === document.body) return null;
  const style = getComputedStyle(focused);
  const outline = `${style.outlineStyle} ${style.outlineWidth}`;
  return { what: focused.id || focused.textContent.trim(), outline };
}"""


async def test_a_screen_reader_hears_news_and_not_figures(shown: Shown) -> None:
    async with shown.page() as page:
        await page.evaluate(LISTEN)
        for rows in range(3):
            shown.status = replace(shown.status, rows_total=rows, durable_lag_seconds=float(rows))
            await ask(page)
        assert await page.evaluate("heard") == []

        shown.status = replace(shown.status, phase="reconnecting")
        await ask(page)
        await ask(page)
        assert await page.evaluate("heard") == ["Reconnecting"]
        lives = "[aria-live], [role=status], [role=alert], [role=log], output"
        assert await page.locator(lives).count() == 1


LISTEN: Final = """() => {
  window.heard = [];
  const spoken = document.querySelector('#announced');
  const listener = new MutationObserver(() => heard.push(spoken.textContent));
  listener.observe(spoken, { childList: true, characterData: true, subtree: true });
}"""


@pytest.mark.parametrize(("wish", "seconds"), [("reduce", "0s"), ("no-preference", "0.4s")])
async def test_nothing_moves_for_who_wants_that(shown: Shown, wish: str, seconds: str) -> None:
    async with shown.page(shown_status.bad(), reduced_motion=wish) as page:
        moving = await page.evaluate(MOVING)

    assert sorted({*moving, "0s"}) == sorted({"0s", seconds})


MOVING: Final = """() => [...new Set([...document.querySelectorAll('*')].flatMap((each) => {
  const style = getComputedStyle(each);
  return [style.transitionDuration, style.animationDuration];
}))]"""


async def test_what_is_read_and_selected_stays_where_it_is(shown: Shown) -> None:
    async with shown.page() as page:
        await page.evaluate(SELECT_AND_WATCH)
        selected = await page.evaluate("String(document.getSelection())")
        for rate in (1.0, 123_456.0, 9.0):
            busiest = tuple(
                replace(each, rows_per_second=rate * (number + 1))
                for number, each in enumerate(shown_status.good().busiest)
            )
            shown.status = replace(
                shown_status.good(),
                busiest=busiest,
                durable_lag_seconds=rate,
                durable_lag=int(rate * 999),
                process_memory_bytes=int(rate * 1e6),
            )
            await page.evaluate("sorting.at = -1e9")
            await ask(page)

        assert selected == "public.table_0005"
        assert await page.evaluate("String(document.getSelection())") == selected
        assert await page.evaluate("shifts") == 0


SELECT_AND_WATCH: Final = """() => {
  window.shifts = 0;
  const watch = new PerformanceObserver((list) => list.getEntries().forEach((each) => {
    shifts += each.value;
  }));
  watch.observe({ type: 'layout-shift' });
  const cell = document.querySelectorAll('#table-rows bdi')[5];
  document.getSelection().selectAllChildren(cell);
}"""


async def test_times_are_the_readers_and_utc_beside(shown: Shown) -> None:
    events = (Event(1_700_000_000_000_000, "phase", "", "streaming"),)
    status = replace(shown_status.good(), events=events)
    async with shown.page(status, timezone_id="Asia/Kolkata") as page:
        event = page.locator("#event-rows time")
        local, beside = await event.inner_text(), await event.get_attribute("title")
        zone = await text(page, "#zone-text")
        await page.locator("#zone").click()
        in_utc = await event.inner_text()

    assert (local, beside) == ("2023-11-15 03:43:20", "2023-11-14 22:13:20 UTC")
    assert (zone, in_utc) == ("Times are those of Asia/Calcutta.", "2023-11-14 22:13:20")


# --- thousands of tables, and names that act


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_two_thousand_tables_stay_usable(shown: Shown, size: tuple[int, int]) -> None:
    async with shown.page(shown_status.many(), size=size) as page:
        assert await text(page, "#tables-count") == "2,000 captured; here are the 100 busiest"
        assert await page.locator("#table-rows tr").count() == 20
        await page.locator("#tables-more").click()
        assert await page.locator("#table-rows tr").count() == 100

        # A table that /status does not list is found by asking for it.
        await page.locator("#filter").fill("table_1234")
        await reached(page, f"{ROWS} === 1")
        assert (await text(page, "#table-rows")).startswith("sales_2.table_1234")
        assert await text(page, "#tables-count") == "1 of 2,000 captured"

        await page.locator("#filter").fill("sales_3")
        await reached(page, f"{ROWS} === 20")
        await reached(
            page, "document.querySelector('#tables-count').textContent.startsWith('286 of 2,000')"
        )
        await page.locator("#filter").fill("nobody")
        await page.wait_for_selector("#tables-none:not([hidden])")
        assert await page.evaluate("document.querySelectorAll('*').length") < 1500


async def test_hostile_names_are_text(shown: Shown) -> None:
    async with shown.page(shown_status.hostile(), size=PHONE) as page:
        names = await page.locator("#table-rows bdi").all_inner_texts()
        made = await page.evaluate("[window.hacked, document.querySelectorAll('img').length]")
        fits = await page.evaluate(FITS)
        page_text = await page.evaluate("document.body.textContent")

    assert names == [HOSTILE_SPELT.get(name, name) for name in shown_status.HOSTILE]
    assert made == [None, 0]
    assert fits
    assert not {"\u202e", "\0", "\x1b"} & set(page_text)


HOSTILE_SPELT: Final = {
    "public.\u202egnp.exe": r"public.\u{202e}gnp.exe",
    "public.a\0b\nc\x1b[31m": r"public.a\u{0}b\u{a}c\u{1b}[31m",
}


async def test_markup_and_scripts_of_somebody_elses_are_refused_by_the_browser(
    shown: Shown,
) -> None:
    async with shown.page(may_say="This document requires 'Trusted") as page:
        assert await page.evaluate(WRITE_MARKUP) == "TypeError"
        assert await page.evaluate(ADD_SCRIPT) == "TypeError"
        assert await page.evaluate("window.hacked") is None


WRITE_MARKUP: Final = """() => {
  try {
    document.querySelector('#route').innerHTML = '<b>x</b>';
  } catch (error) { return error.name; }
}"""

ADD_SCRIPT: Final = """() => {
  try {
    const script = document.createElement('script');
    script.textContent = 'window.hacked = 1';
    document.body.append(script);
  } catch (error) { return error.name; }
}"""

"""The result file, the report beside it and the display, kept up to date as runs end.

Strategy: the runner begins and ends scenarios; a scenario begins groups and hands in its runs.

Invariant: after every run the file on disk is whole and holds all runs so far.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from load_tests.display import Display
from load_tests.machine import machine
from load_tests.peers import Peer
from load_tests.plan import Plan
from load_tests.report import write_report
from load_tests.result import (
    Group,
    Outcome,
    Result,
    ScenarioOutcome,
    ScenarioResult,
    Verification,
)
from load_tests.run import Run


class Recorder:
    """Where a scenario hands what it measured."""

    def __init__(
        self, path: Path, plan: Plan, arguments: tuple[str, ...], display: Display
    ) -> None:
        self._path = path
        self._display = display
        self.result = Result(began=_now(), arguments=arguments, plan=plan, machine=machine())
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        display.begin(self.result)

    @property
    def _scenario(self) -> ScenarioResult:
        return self.result.scenarios[-1]

    @property
    def group(self) -> Group:
        """The newest one, with what was measured so far."""
        return self._scenario.groups[-1]

    # --- for a scenario ----------------------------------------------------------

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show what goes on, until it is done."""
        with self._display.step(text):
            yield

    def release(self, name: str, version: str) -> None:
        """Keep the release of a server or peer that takes part."""
        self.result.servers[name] = version

    def peer(self, peer: Peer) -> None:
        """Keep that a peer takes part, and what it does with a row."""
        cold = " Not warmed up: its first round is a cold one." if peer.is_slow else ""
        self.result.peers[peer.name] = f"{peer.title}. {peer.text}{cold}"
        if version := peer.version():
            self.release(peer.name, version)

    def reader(self, name: str, text: str) -> None:
        """Keep what a reader is that is the engine, otherwise configured."""
        self.result.peers[name] = text

    def absent(self, name: str, why: str) -> None:
        """Keep and show that a peer, or a server of a release, could not be had."""
        self._scenario.absent[name] = why
        self._display.absent(name, why)
        self._write()

    def begin(
        self, server: str, *, variant: str = "", facts: Mapping[str, float] | None = None
    ) -> None:
        """From now on, runs are against this server, of this variant of the scenario."""
        self._scenario.groups.append(Group(server=server, variant=variant, facts=dict(facts or {})))
        self._display.group(self.group)

    def fact(self, name: str, value: float) -> None:
        """Keep what the newest group's runs have in common, named with its unit last."""
        self.group.facts[name] = value

    def note(self, text: str) -> None:
        """Keep and show what whoever reads the newest group's figures has to know."""
        self.group.notes.append(text)
        self._display.note(text)

    def add(self, run: Run) -> None:
        """Keep and show one run of the newest group."""
        self.group.runs.append(run)
        self._scenario.compute()
        self._write()
        self._display.run(run)

    def verified(self, verification: Verification) -> None:
        """Keep what the bucket proved about the newest group's runs; the first wrong one stays."""
        found = self.group.verification
        if found is None or found.is_right:
            self.group.verification = verification
        self._write()

    # --- for the runner ----------------------------------------------------------

    def begin_scenario(self, scenario: ScenarioResult) -> None:
        """From now on, groups are this scenario's."""
        scenario.began = _now()
        self.result.scenarios.append(scenario)
        self._write()

    def announce(self, *, seconds: float, seconds_after: float) -> None:
        """Show that the newest scenario is measured now, and about how long it takes."""
        self._display.scenario(self._scenario, seconds=seconds, seconds_after=seconds_after)

    def skip(self, why: str) -> None:
        """Keep and show that the newest scenario is not measured."""
        self.end_scenario("not run", why)
        self._display.skipped(self._scenario)

    def end_scenario(self, outcome: ScenarioOutcome, why: str = "") -> None:
        """Close the newest scenario; the report is written anew."""
        self._scenario.outcome = outcome
        self._scenario.why = why
        self._scenario.ended = _now()
        self._write()
        write_report(self.result, self._path)

    def end(self, *, outcome: Outcome, error: str = "", hint: str = "") -> None:
        """Close the result, also where it is not whole, and show it."""
        self.result.outcome = outcome
        self.result.error = error
        self.result.ended = _now()
        self._write()
        report = write_report(self.result, self._path)
        self._display.end(self.result, self._path, report, hint)

    def _write(self) -> None:
        text = msgspec.json.format(msgspec.json.encode(self.result), indent=2)
        # An interrupt between two writes leaves the older one whole.
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_bytes(text + b"\n")
        os.replace(partial, self._path)  # noqa: PTH105 - the pair reads as one step


def _now() -> str:
    return datetime.now(UTC).isoformat()

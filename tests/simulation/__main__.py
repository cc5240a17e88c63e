"""Command: one schedule, many, or all mutants. See the package."""

import argparse
import os
import sys
import time

from simulation import mutants
from simulation.mutants import say


def main() -> int:
    """Run what the command line asks for; 0 when nothing was violated, missed or survived."""
    options = _options()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of text are walked in an order that depends on this: a seed must replay.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "simulation", *sys.argv[1:]])
    if options.mutants:
        return mutants.report(
            options.rules,
            options.schedules,
            options.processes,
            is_remembering=options.remember,
        )
    if options.mutant:
        mutants.install(options.mutant)
    return _schedules(options) if options.seed is None else _one(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="play this one schedule")
    parser.add_argument("--lying-store", action="store_true", help="it ignores If-None-Match")
    parser.add_argument("--verbose", action="store_true", help="with its trace")
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--until-caught", action="store_true", help="end at the first violation")
    parser.add_argument("--mutant", help="take this rule away")
    parser.add_argument("--mutants", action="store_true", help="take every rule away in turn")
    parser.add_argument(
        "--remember", action="store_true", help="hunt mutants over all seeds; keep what caught them"
    )
    parser.add_argument("--rules", default="", help="only these mutants, comma separated")
    return parser.parse_args()


def _one(options: argparse.Namespace) -> int:
    # The engine may be imported only after a mutant was installed.
    from simulation.engines import prepare_process  # noqa: PLC0415
    from simulation.world import World  # noqa: PLC0415

    prepare_process()
    outcome = World(
        options.seed, is_verbose=options.verbose, is_store_lying=options.lying_store
    ).run()
    for name, count in sorted(outcome.counts.items()):
        say(f"{count:8} {name}")
    say(f"seed {options.seed}: {outcome.violation or 'clean'}")
    return int(outcome.violation is not None)


def _schedules(options: argparse.Namespace) -> int:
    from simulation.campaign import Summary, outcomes  # noqa: PLC0415

    began, summary = time.monotonic(), Summary()
    seeds = range(options.first, options.first + options.schedules)
    for outcome in outcomes(seeds, options.processes):
        summary.add(outcome)
        if outcome.violation is not None and options.until_caught:
            say(f"caught after {summary.schedules}: {outcome.violation} (seed {outcome.seed})")
            return 1
    seconds = time.monotonic() - began
    for name, count in sorted(summary.counts.items()):
        say(f"{count:10} {name}")
    rate = summary.schedules / seconds
    say(f"{summary.schedules} schedules in {seconds:.0f} s, {rate:.1f} a second")
    for text, failed in sorted(summary.violations.items(), key=lambda item: -len(item[1])):
        say(f"VIOLATION {len(failed)} times: {text}; seeds {failed[:5]}")
    for window in summary.windows_missed:
        say(f"MISSED {window}")
    is_missed = bool(summary.windows_missed) and summary.schedules >= 1_000
    return int(not summary.is_clean or is_missed)


if __name__ == "__main__":
    sys.exit(main())

"""Mutants: the real code with one rule taken away.

Strategy: a mutant is an exact piece of a module's source, and what stands there instead. It is put
in when the module is imported, in a process of its own. Each piece must occur exactly once: a
mutant that no longer fits its module fails loudly instead of testing nothing.

Some mutants are caught only after hundreds of schedules. So the seed that caught a mutant is
remembered in `caught.json` and played first. Where the code has changed so much that this seed
catches nothing, the hunt goes over all seeds as before: it takes longer and proves the same.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, ModuleType

from simulation.rules import MUTANTS, NOT_APPLICABLE, Edit

_MEMORY = Path(__file__).with_name("caught.json")
"""The seed that caught each mutant when all of them were hunted over all seeds, by rule."""


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class _EditedLoader(importlib.machinery.SourceFileLoader):
    """Loads a module's source with replacements, never from a cache."""

    def __init__(self, name: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(name, path)
        self._edits = edits

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        for edit in self._edits:
            found = source.count(edit.piece)
            if found != 1:
                raise SystemExit(f"{fullname}: found {found} times, not once:\n{edit.piece}")
            source = source.replace(edit.piece, edit.instead)
        return compile(source, path, "exec", dont_inherit=True)


class _EditingFinder(importlib.abc.MetaPathFinder):
    """Finds the edited modules before anything else does."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        edits = [edit for edit in self._edits if edit.module == fullname]
        if not edits:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            raise SystemExit(f"no module {fullname}")
        loader = _EditedLoader(fullname, spec.origin, edits)
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


def install(rule: str) -> None:
    """Take `rule` away from whatever is imported from now on."""
    mutant = next(mutant for mutant in MUTANTS if mutant.rule == rule)
    loaded = {edit.module for edit in mutant.edits} & set(sys.modules)
    if loaded:
        raise SystemExit(f"imported too early: {', '.join(sorted(loaded))}")
    sys.meta_path.insert(0, _EditingFinder(mutant.edits))


def _hunt(rule: str, schedules: int, seed: int | None) -> tuple[bool, str]:
    """Play schedules with the mutant until one is violated: first `seed`, then all from 0 on."""
    if seed is not None:
        is_caught, last = _play(rule, seed, 1)
        if is_caught:
            return True, f"again: {last}"
    return _play(rule, 0, schedules)


def _play(rule: str, first: int, schedules: int) -> tuple[bool, str]:
    """Play so many schedules with the mutant, in a process of its own, until one is violated."""
    command = [sys.executable, "-m", "simulation", "--mutant", rule, "--until-caught"]
    command += ["--processes", "1", "--first", str(first), "--schedules", str(schedules)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
    # A mutant that does not even run proves nothing about its rule.
    is_broken = any(name in last for name in ("NameError", "AttributeError", "TypeError", "Import"))
    is_caught = done.returncode == 1 and last.startswith("caught") and not is_broken
    return is_caught, last


def report(rules: str, schedules: int, processes: int, *, is_remembering: bool) -> int:
    """Hunt every mutant, print a table; 1 when one survives or no longer fits.

    With `is_remembering` each is hunted over all seeds, and the seeds that caught them are kept.
    """
    wanted = [m for m in MUTANTS if not rules or m.rule in rules.split(",")]
    seeds: dict[str, int] = json.loads(_MEMORY.read_text())
    first = {} if is_remembering else seeds
    with ThreadPoolExecutor(processes) as pool:
        hunts = [pool.submit(_hunt, m.rule, schedules, first.get(m.rule)) for m in wanted]
        survivors = 0
        for mutant, hunt in zip(wanted, hunts, strict=True):
            is_caught, text = hunt.result()
            survivors += not is_caught
            verdict = text if is_caught else f"SURVIVED: {text}"
            say(f"{mutant.rule:22} {mutant.text:72} {verdict}")
            if is_caught and is_remembering:
                seeds[mutant.rule] = int(text.rpartition("(seed ")[2].rstrip(")"))
                _remember(seeds)
    for rule, reason in NOT_APPLICABLE.items():
        say(f"{rule:22} not applicable: {reason}")
    say(f"{len(wanted)} mutants, {survivors} survived")
    return int(survivors > 0)


def _remember(seeds: dict[str, int]) -> None:
    """Keep the seeds, but for those of rules that are no more."""
    kept = {mutant.rule: seeds[mutant.rule] for mutant in MUTANTS if mutant.rule in seeds}
    _MEMORY.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")

"""The protocol's model, checked at random: the rules as they were designed, without the engine."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

RUNS = 300


def journal_model() -> ModuleType:
    path = Path(__file__).parent / "model" / "journal_model.py"
    spec = importlib.util.spec_from_file_location("journal_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["journal_model"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(300)
def test_the_model_with_all_rules_has_no_violation() -> None:
    model = journal_model()

    violations = [
        (seed, violation)
        for seed, violation, _ in (model.check((seed, 500, ())) for seed in range(RUNS))
        if violation is not None
    ]

    assert violations == []


def test_the_model_without_a_rule_finds_a_violation() -> None:
    model = journal_model()

    found = any(model.check((seed, 500, ("durable_first",)))[1] for seed in range(RUNS))

    assert found

"""All scenarios, in order of value: where time is short, the first ones are measured.

Adding one: a module with a `Scenario`, and its name here.
"""

from load_tests.scenario import Scenario

SCENARIOS: tuple[Scenario, ...] = ()

"""The pages: tables that list what the source has, a whole code map, numbers and links that fit."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry

import engine
from engine.cli import application
from engine.model import check_code, errors
from engine.operate.metrics import Metrics
from engine.operate.status import READY_PHASES, Phase
from engine.sources.postgres import check_codes
from engine.sources.postgres.source import MEASURES

CODES = (*check_code.CODES, *check_codes.CODES)

PACKAGE = Path(engine.__file__).parent
PAGE = PACKAGE.parent / "docs" / "operations.md"

ALARMS = {"set", "replace"}
SUFFIXES = {"counter": "_total", "info": "_info"}


def section(title: str) -> str:
    """The page's part under that heading."""
    return PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def first_cells(title: str) -> list[str]:
    """The first column of that part's table."""
    rows = re.findall(r"^\| (.+?) \|", section(title), re.MULTILINE)
    return rows[1:]


def listed(title: str) -> list[str]:
    """The names in the first column, without a metric's labels."""
    cells = "\n".join(first_cells(title))
    return re.findall(r"`([a-z_-]+)(?:\{[a-z,]+\})?`", cells)


def raised(module: ast.Module) -> Iterator[ast.expr]:
    """What `alarms.set(…)` and `alarms.replace(…)` are given as the code."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if node.func.attr in ALARMS and re.fullmatch(r"(\w+\.)*_?alarms", owner):
                yield node.args[0]


def constants(modules: list[ast.Module]) -> dict[str, set[str]]:
    """Texts by the name of the constant that holds them."""
    found: dict[str, set[str]] = {}
    for module in modules:
        for node in module.body:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text)))
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(text)))
                ):
                    found.setdefault(name, set()).add(text)
                case _:
                    pass
    return found


def alarm_codes() -> set[str]:
    modules = [ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))]
    texts = constants(modules)
    found = set[str]()
    for module in modules:
        own = constants([module])
        for code in raised(module):
            name = ast.unparse(code).rsplit(".", 1)[-1]
            # Where a name is another module's, every module's constant of that name counts.
            found |= own.get(name) or texts[name]
    return found


def test_every_alarm_code_of_the_source_is_in_the_table() -> None:
    codes = alarm_codes()

    assert {"gap", "source-failing", "commits-wait"} <= codes
    assert sorted(codes) == sorted(listed("Alarms"))


def test_every_phase_is_in_the_table_and_the_ready_ones_are_named() -> None:
    ready = section("Phases").split("answers 200 in ")[1].split(", and 503")[0]

    assert listed("Phases") == list(get_args(Phase))
    assert set(re.findall(r"`(\w+)`", ready)) == READY_PHASES


def lines_logged(*levels: str) -> Iterator[ast.Call]:
    """The calls that log a line of such a level."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if owner == "_log" and node.func.attr in levels:
                    yield node


def test_every_line_of_the_log_above_info_is_explained() -> None:
    page = section("The log")
    texts = {
        str(call.args[0].value)
        for call in lines_logged("warning", "error")
        if isinstance(call.args[0], ast.Constant)
    }

    assert len(texts) > 40
    assert sorted(text for text in texts if f"`{text}`" not in page) == []


def test_every_line_that_wants_somebody_to_act_says_what_to_do() -> None:
    without = [
        ast.unparse(call.args[0])
        for call in lines_logged("error")
        if "hint" not in {keyword.arg for keyword in call.keywords}
    ]

    assert without == []


def test_every_exit_code_is_in_the_table() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {of.exit_code for of in classes if issubclass(of, errors.TailraceError)}
    codes |= {value for name, value in vars(application).items() if name.startswith("EXIT_")}

    # 1 is the answer of commands that found something.
    assert [int(cell) for cell in first_cells("Exit codes")] == sorted({*codes, 1})


class Described(NamedTuple):
    """What a metric's row says of it."""

    name: str
    type: str
    labels: str
    help: str


def declared_metrics() -> list[Described]:
    """Every metric of the engine's registry, as its row should be."""
    registry = CollectorRegistry()
    Metrics(registry, measures=MEASURES).log_lines_dropped(lambda: 0)
    found = []
    for collector in registry._collector_to_names:
        for family in collector.collect():
            labels: Iterable[str] = getattr(collector, "_labelnames", ())
            if family.type == "info":
                labels = family.samples[0].labels
            name = family.name + SUFFIXES.get(family.type, "")
            texts = ", ".join(f"`{label}`" for label in labels)
            found.append(Described(name, family.type, texts, family.documentation))
    return sorted(found)


def test_the_page_of_metrics_says_of_each_what_the_registry_says() -> None:
    row = re.compile(r"^\| `(\w+)` \| (\w+) \| (?:(`.+?`) )?\| (.+) \|$", re.MULTILINE)
    rows = row.findall((PAGE.parent / "metrics.md").read_text())

    assert sorted(Described(*cells) for cells in rows) == declared_metrics()


def test_the_code_map_names_every_module_once() -> None:
    text = (PAGE.parent / "ARCHITECTURE.md").read_text()
    rooms = re.findall(r"`(engine/[\w./]+)`", text.split("## The code map")[1].split("\n## ")[0])

    modules = {f"engine/{path.name}" for path in PACKAGE.glob("*.py")}
    modules |= {f"engine/{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    for room in ("flow", "journal", "lines", "model", "operate", "pipeline"):
        for path in (PACKAGE / room).iterdir():
            if path.suffix in {".py", ".pyx"} and path.name != "__init__.py":
                modules.add(f"engine/{room}/{path.name}")
    modules -= {"engine/__init__.py", "engine/__main__.py"}
    assert len(rooms) == len(set(rooms))
    assert modules <= set(rooms)


def decisions() -> list[Path]:
    return sorted((PAGE.parent / "decisions").glob("[0-9]*.md"))


def test_the_index_of_decisions_names_every_record_once() -> None:
    index = (PAGE.parent / "decisions" / "README.md").read_text()
    named = re.findall(r"^\| \[(\d{4})\]\((\1-[\w-]+\.md)\) \|", index, re.MULTILINE)

    assert sorted(name for _, name in named) == [record.name for record in decisions()]


def test_every_decision_has_its_own_number_and_says_context_decision_and_consequence() -> None:
    records = decisions()
    numbers = [record.name[:4] for record in records]

    assert len(numbers) == len(set(numbers))
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {record.name[:4]}: ")
        headings = re.findall(r"^## (Context|Decision|Consequence)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequence"], record.name


def test_every_link_between_pages_leads_somewhere() -> None:
    root = PAGE.parent.parent
    for page in (*root.glob("*.md"), *root.glob("docs/**/*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


CHECKS = PAGE.parent / "checks.md"


def test_every_code_of_check_has_a_section_that_begins_with_its_title() -> None:
    text = CHECKS.read_text()

    sections = re.findall(r"^### (\S+)\n\n\*\*(.+?)\*\*", text, re.MULTILINE)

    assert sorted(sections) == sorted((code.id, code.title) for code in CODES)
    assert len(re.findall(r"^### ", text, re.MULTILINE)) == len(sections)


def test_no_code_and_no_name_of_check_is_given_twice() -> None:
    for values in ([code.id for code in CODES], [code.name for code in CODES]):
        assert len(values) == len(set(values))
    assert all(re.fullmatch(r"TR-(CF|EN|PG|S3|JN)-\d{3}", code.id) for code in CODES)

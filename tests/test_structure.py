"""The house keeps its shape: who imports whom, what pure files may touch, how long a file may be.

Every module is read as a syntax tree; nothing is imported. Each rule is first held against a file
that breaks it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
PACKAGES = ("participants", "coordinator", "cluster")
MODULES = sorted(path for package in PACKAGES for path in (HOUSE / package).rglob("*.py"))
CONTRACT = "participants.contract"

PURE = {
    *(
        f"coordinator/{name}.py"
        for name in (
            "admission",
            "alarms",
            "allowance",
            "capacity",
            "commands",
            "conversation",
            "declarations",
            "errors",
            "facts",
            "ids",
            "indexes",
            "inquiry",
            "leg",
            "machine",
            "moves",
            "packed",
            "places",
            "plan",
            "records",
            "retries",
            "settings",
            "table",
        )
    ),
    "participants/canonical.py",
    "participants/contract.py",
    "participants/branch.py",
    "participants/messages.py",
    "participants/retry_after.py",
    "cluster/raft/founding.py",
    "cluster/raft/wire.py",
    "cluster/storage/journal_format.py",
}
OUTSIDE_WORLD = {
    "aiohttp",
    "asyncio",
    "concurrent",
    "datetime",
    "logging",
    "os",
    "pathlib",
    "queue",
    "random",
    "secrets",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
ALLOWED_IN_PURE = {
    "coordinator/ids.py": {"random.Random"},  # the type of what is given to it
    # To write and read times, never to ask for the present one.
    "participants/contract.py": {"datetime.UTC", "datetime.datetime"},
    "participants/messages.py": {"datetime.UTC", "datetime.datetime", "datetime.timedelta"},
    "participants/retry_after.py": {"datetime.UTC", "datetime.datetime"},
}
CLOCKS = {"now", "utcnow", "today"}

KNOW_AIOHTTP = {"coordinator/participant_connection.py", "coordinator/http_connection.py"}
"""What speaks HTTP: everything else speaks of requests and answers."""

MAX_LINES = 440
LONGER = {
    "cluster/raft/core.py": 500,  # the overrides of one foreign class belong side by side
    "cluster/raft/replica.py": 600,
    "coordinator/driver.py": 465,
    "cluster/raft/transport.py": 500,
    "coordinator/conversation.py": 500,
    "coordinator/openapi_schemas.py": 500,  # one shape after another
    "participants/contract.py": 445,
    "participants/sqlite_file.py": 455,
}


def name_of(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every name imported, dotted: `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".")


def is_within(imported: str, module: str) -> bool:
    return imported == module or imported.startswith(module + ".")


def broken_imports(name: str, source: str) -> list[str]:
    """What the module imports and must not."""
    package = name.split("/", maxsplit=1)[0]
    broken = []
    for imported in imports(ast.parse(source)):
        match package:
            case "participants":
                wrong = is_within(imported, "coordinator") or is_within(imported, "cluster")
            case "coordinator":
                foreign = is_within(imported, "participants") and not is_within(imported, CONTRACT)
                wrong = foreign or is_within(imported, "cluster")
            case _:
                wrong = False
        if is_within(imported, "pysyncobj") and name != "cluster/raft/core.py":
            wrong = True
        if is_within(imported, "aiohttp") and package == "coordinator":
            wrong = name not in KNOW_AIOHTTP
        if is_within(imported, "tests"):
            wrong = True
        if wrong:
            broken.append(imported)
    return broken


def impurities(name: str, source: str) -> list[str]:
    """What a pure module does that depends on more than its arguments."""
    tree = ast.parse(source)
    allowed = ALLOWED_IN_PURE.get(name, set())
    found = [
        imported
        for imported in imports(tree)
        if imported.split(".")[0] in OUTSIDE_WORLD and imported not in allowed
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await):
            found.append(f"line {node.lineno}: waits")
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id="hash" | "id" | "open" | "print" | "input" as called):
                    found.append(f"line {node.lineno}: {called}()")
                case ast.Attribute(attr=attribute) if attribute in CLOCKS:
                    found.append(f"line {node.lineno}: .{attribute}()")
        if isinstance(node, ast.For | ast.comprehension) and _is_a_set(node.iter):
            found.append(f"line {node.iter.lineno}: iterates over a set")
    return found


def _is_a_set(node: ast.expr) -> bool:
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case _:
            return False


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    assert broken_imports(name_of(path), path.read_text()) == []


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_touches_no_clock_chance_disk_network_thread_or_log(name: str) -> None:
    assert impurities(name, (HOUSE / name).read_text()) == []


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_imports_none_of_the_house_but_pure_ones(name: str) -> None:
    for imported in imports(ast.parse((HOUSE / name).read_text())):
        if imported.split(".")[0] in PACKAGES:
            assert any(is_within(imported, dotted(pure)) for pure in PURE), imported


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_begins_with_the_phrase_that_it_is(path: Path) -> None:
    source = path.read_text()
    if path.name == "__init__.py" and not source:
        return
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring, "no docstring"
    assert docstring[0].isupper() or docstring[0] in "`'\""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_one_idea_long(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGER.get(name_of(path), MAX_LINES)


@pytest.mark.parametrize("name", sorted(LONGER))
def test_a_file_that_may_be_longer_is(name: str) -> None:
    """Or the exception goes."""
    assert len((HOUSE / name).read_text().splitlines()) > MAX_LINES


def test_every_file_named_in_these_rules_exists() -> None:
    for name in (*PURE, *LONGER, *ALLOWED_IN_PURE, *KNOW_AIOHTTP):
        assert (HOUSE / name).is_file(), name


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("participants", "coordinator")
        for path in sorted((HOUSE / folder).glob("[!_]*.py"))
    ],
    ids=name_of,
)
def test_the_page_about_the_house_names_every_file_of_the_lower_layers(path: Path) -> None:
    page = (HOUSE / "ARCHITECTURE.md").read_text()
    files = page.partition(f"### {path.parent.name}/, file by file")[2].partition("\n### ")[0]
    assert f"`{path.stem}`" in files


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("", "raft", "storage", "client", "cli", "local", "bench")
        for path in sorted((HOUSE / "cluster" / folder).glob("[!_]*.py"))
    ],
    ids=name_of,
)
def test_the_page_about_the_house_names_every_file_of_the_cluster(path: Path) -> None:
    page = (HOUSE / "ARCHITECTURE.md").read_text()
    table = page.partition("### cluster/, file by file")[2].partition("\n## ")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    folder = "" if path.parent.name == "cluster" else f"{path.parent.name}/"
    names = [
        re.findall(r"`([^`]+)`", row)
        for row in rows
        if ("/" in row) == bool(folder) and (not folder or f"`{folder}" in row)
    ]
    found = [name.removeprefix(folder) for row in names for name in row]
    assert any(fnmatch(path.stem, name) for name in found), found


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("participants/x.py", "import coordinator.facts"),
        ("participants/x.py", "def f():\n    from cluster import wire"),
        ("coordinator/x.py", "from participants import sdk"),
        ("coordinator/x.py", "from participants.sdk import Sdk"),
        ("coordinator/x.py", "import cluster"),
        ("cluster/x.py", "import pysyncobj"),
        ("coordinator/x.py", "from pysyncobj import SyncObj"),
        ("coordinator/api.py", "from aiohttp import web"),
        ("cluster/x.py", "from tests.builders import branch"),
    ],
)
def test_an_import_upwards_is_noticed(name: str, source: str) -> None:
    assert broken_imports(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("coordinator/x.py", "from participants.contract import Vote"),
        ("coordinator/x.py", "import participants.contract"),
        ("cluster/x.py", "from coordinator import driver"),
        ("cluster/raft/core.py", "from pysyncobj import SyncObj"),
        ("coordinator/http_connection.py", "from aiohttp.http import HttpRequestParser"),
    ],
)
def test_an_import_downwards_is_allowed(name: str, source: str) -> None:
    assert not broken_imports(name, source)


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "from time import monotonic",
        "from random import Random, random",
        "async def f(): pass",
        "def f(x): return hash(x)",
        "for x in {1, 2}: pass",
        "[x for x in set(y)]",
        "datetime.now()",
        "open('x')",
    ],
)
def test_an_impurity_is_noticed(source: str) -> None:
    assert impurities("coordinator/ids.py", source)


# --- tests ----------------------------------------------------------------------------------------


def scenarios_never_run(source: str) -> list[str]:
    """Of a file of tests: those in which a function is written that nothing there uses."""
    found = []
    for test in ast.parse(source).body:
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
            written = {
                node.name
                for node in test.body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            used = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
            found += [f"{test.name}: {name}" for name in sorted(written - used)]
    return found


def test_a_scenario_that_is_never_run_is_noticed() -> None:
    forgotten = "def test_a() -> None:\n    async def scenario() -> None:\n        assert False\n"
    assert scenarios_never_run(forgotten) == ["test_a: scenario"]
    assert scenarios_never_run(forgotten + "\n    run(scenario())\n") == []


def test_every_scenario_of_a_test_is_run() -> None:
    """A test that forgets to passes whatever the code does."""
    files = sorted((HOUSE / "tests").rglob("test_*.py"))
    assert files
    found = {path.name: scenarios_never_run(path.read_text(encoding="utf-8")) for path in files}
    assert {name: tests for name, tests in found.items() if tests} == {}

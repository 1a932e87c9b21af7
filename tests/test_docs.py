"""What the pages tell people to type can be typed, and what they name is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cli.bench import shielded
from cluster.cli.main import _parser as assent_parser
from cluster.cli.output import UserMistake
from tests.checker import Checker
from tests.model.mutants import MUTANTS

TOP = Path(__file__).resolve().parent.parent
PAGES = (TOP / "README.md", TOP / "ARCHITECTURE.md", TOP / "CHANGELOG.md", TOP / "Procfile")
DOCS = tuple(sorted((TOP / "docs").glob("*.md")))
NOT_YET = ("assent chaos", "assent cluster transfer")
"""Of these the pages say that they are not there."""
PLACEHOLDERS = {"N": "5", "DIR": ".", "OLD": ".", "NEW": ".", "ID": "a"}
CUT_SHORT = ("the following arguments are required", "expected one argument")
"""Who only names a command does not say with what."""


def text_of(name: str) -> str:
    return (TOP / name).read_text(encoding="utf-8")


def commands() -> Iterator[str]:
    """`assent ...` in backticks, behind a prompt, and in the Procfile."""
    for page in (*PAGES, *DOCS):
        text = page.read_text(encoding="utf-8")
        yield from re.findall(r"`(assent [^`\n]+)`", text)
        yield from re.findall(r"^ *(?:\$|\w+:) (?:\.venv/bin/)?(assent .+)$", text, re.MULTILINE)


def complaint(command: str) -> str:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    try:
        assent_parser().parse_args(shielded(words[1:]))
    except UserMistake as mistake:
        return str(mistake)
    except SystemExit as end:  # --help and --version
        return f"exit code {end.code}" if end.code else ""
    return ""


@pytest.mark.parametrize("command", sorted({*commands()} - {*NOT_YET}))
def test_every_command_of_the_pages_can_be_typed(command: str) -> None:
    said = complaint(command)
    assert not said or any(short in said for short in CUT_SHORT), said


@pytest.mark.parametrize("command", [*NOT_YET, "assent list --stat x", "assent bench --rat 5 6"])
def test_what_cannot_be_typed_is_noticed(command: str) -> None:
    assert not any(short in complaint(command) for short in CUT_SHORT)
    assert complaint(command)


def test_every_file_that_a_page_names_is_there() -> None:
    named = {
        name
        for page in (*PAGES, *DOCS)
        for name in re.findall(
            r"`((?:cluster|coordinator|deploy|docs|participants|tests)/[\w/.-]*)`",
            page.read_text(encoding="utf-8"),
        )
    }
    assert len(named) > 20
    missing = {
        name for name in named if not (TOP / name).exists() and not (TOP / f"{name}.py").exists()
    }
    assert missing == set()


def test_every_test_that_holds_an_invariant_is_there() -> None:
    table = text_of("ARCHITECTURE.md").partition("| | invariant |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (I\d+) \|.*\| ([^|]*) \|$", table, re.MULTILINE)
    assert [name for name, _ in rows] == [f"I{number}" for number in range(1, 12)]
    for name, tested_by in rows:
        files = re.findall(r"`(test_\w+)`", tested_by)
        assert files, name
        for file in files:
            assert (TOP / "tests" / f"{file}.py").is_file(), file
        for rule in re.findall(r"`([a-z*]+-[a-z*-]+)`", tested_by):
            assert any(re.fullmatch(rule.replace("*", ".*"), one) for one in MUTANTS), rule


def test_the_rules_of_the_protocol_are_the_ones_that_can_be_switched_off() -> None:
    table = text_of("docs/protocol.md").partition("## 12.")[2]
    named = re.findall(r"^\|[^|]*\| `([a-z-]+)` \|", table, re.MULTILINE)
    assert len(named) >= 20
    assert set(named) <= set(MUTANTS)
    assert f"{len(MUTANTS)} rules switched off one by one" in text_of("docs/reliability.md")


def test_the_page_about_histories_names_every_event_that_the_checker_reads() -> None:
    page = text_of("docs/reliability.md").partition("| event | its fields |")[2]
    first_column = re.findall(r"^\| (`[^|]*) \|", page.partition("\n\n")[0], re.MULTILINE)
    named = {name for cell in first_column for name in re.findall(r"`(\w+)`", cell)}
    read = {name.removeprefix("_on_") for name in vars(Checker) if name.startswith("_on_")}
    assert read <= named
    assert named - read == {"answered_commit", "answered_abort"}  # these say nothing by themselves

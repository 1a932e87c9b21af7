"""What the pages tell people to type can be typed, and what they name is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import clocks
from cluster.cli.bench import shielded
from cluster.cli.main import _parser as assent_parser
from cluster.cli.output import UserMistake
from cluster.client import async_client
from cluster.client import calls as client_calls
from cluster.local import cluster as local_cluster
from coordinator import (
    admission,
    api_connection,
    api_http,
    api_shapes,
    api_transactions,
    capacity,
    conversation,
    driver,
    gateway,
    machine,
    places,
    resolver,
    retries,
    talks,
)
from coordinator.settings import Limits, Retention, Timings
from participants.inquiry import MAX_WATCHED, InquirySettings
from participants.sdk import ParticipantSettings
from tests.checker import Checker
from tests.model.mutants import MUTANTS

TOP = Path(__file__).resolve().parent.parent
PAGES = (TOP / "README.md", TOP / "ARCHITECTURE.md", TOP / "CHANGELOG.md", TOP / "Procfile")
DOCS = tuple(sorted((TOP / "docs").glob("*.md")))
NOT_YET = ("assent chaos",)
"""Of these the pages say that they are not there."""
PLACEHOLDERS = {"N": "5", "DIR": ".", "OLD": ".", "NEW": ".", "ID": "a"}
CUT_SHORT = ("the following arguments are required", "expected one argument")
"""Who only names a command does not say with what."""


README, ARCHITECTURE, PROTOCOL = "README.md", "ARCHITECTURE.md", "docs/protocol.md"
CHANGELOG = "CHANGELOG.md"
MIB, GIB, DAY_MS = 1 << 20, 1 << 30, 24 * 3_600_000
NUMBERS = {2: "two", 5: "five", 7: "seven", 8: "eight", 10: "ten"}
SHARES = {2: "half", 4: "fourth", 5: "fifth"}
FIGURES = [
    (README, "opens up to {0} for prepares and {0} for", gateway._MOST_BESIDE),
    (README, "and {0} and {0} (`calls_per_participant`)", Limits().calls_per_participant),
    (README, "`undecided_bytes` of them ({} GiB, a fifth", Limits().undecided_bytes / GIB),
    (README, "1 GiB, a {} of it for one service", SHARES[capacity._SHARE]),
    (README, "than `bodies_bytes` ({} MiB)", Limits().bodies_bytes / MIB),
    (README, "last `steady_ms` ({} minutes)", NUMBERS[Retention().steady_ms // 60_000]),
    (ARCHITECTURE, "wait for each other, at most {} s.", conversation.ACKNOWLEDGE_WITHIN_S),
    (ARCHITECTURE, "or after {} and", talks.ACKNOWLEDGE_PATIENCE_S * 1000),
    (ARCHITECTURE, "50 and {} ms, unless", driver.BEGIN_PATIENCE_S * 1000),
    (ARCHITECTURE, "that failed, {} are called again in a second", retries.RETRIES_PER_S),
    (ARCHITECTURE, "brings {} others forward", NUMBERS[retries.BROUGHT_FORWARD]),
    (ARCHITECTURE, "({:,} in any case)", admission.LEAST),
    (ARCHITECTURE, "held back for the rest, up to {} s", api_connection.HELD_BACK_S),
    (ARCHITECTURE, "A rest ends after {} s", admission.LONGEST_REST_S),
    (ARCHITECTURE, "a batch begins {} usual transactions", NUMBERS[admission.TURN]),
    (ARCHITECTURE, "no more than {} of all batches", admission.IN_TURN_LEAST),
    (ARCHITECTURE, "transaction calls {} branches at once", conversation.CALLS_AT_ONCE),
    (ARCHITECTURE, "and then {} in each turn", NUMBERS[conversation.CALLS_PER_TURN]),
    (ARCHITECTURE, "takes up {} branches in a turn", driver.TAKE_UP_AT_ONCE),
    (ARCHITECTURE, "lets go of {} transactions", talks.LET_GO_AT_ONCE),
    (ARCHITECTURE, "of the open files, but for {}**", api_http.KEPT_FILES),
    (ARCHITECTURE, "prepares have a {} of the files", SHARES[places._SHARE]),
    (ARCHITECTURE, "its calls leave {} ms apart", gateway._STRANGER_PATIENCE_S * 1000),
    (ARCHITECTURE, "So after {} s they go again", gateway._TRY_S),
    (ARCHITECTURE, "A try has {} seconds", NUMBERS[int(async_client.TIMEOUT)]),
    (ARCHITECTURE, "of the client's own {:,} connections", client_calls._CONNECTIONS),
    (
        ARCHITECTURE,
        "have {} of the threads",
        SHARES[resolver._THREADS // resolver._THREADS_FOR_STRANGERS],
    ),
    (ARCHITECTURE, "More than {:,} branches in doubt", MAX_WATCHED),
    (PROTOCOL, "{} days by default", NUMBERS[ParticipantSettings().tombstones_kept_ms // DAY_MS]),
    (PROTOCOL, "stays prepared ({} s at first", InquirySettings().first_after_s),
    (PROTOCOL, "plus a grace of {} s", Timings().grace_ms / 1000),
    (PROTOCOL, "keeps its {} places", Limits().calls_per_participant),
    (PROTOCOL, "less the retention ({} h)", Retention().keep_ms / 3_600_000),
    (PROTOCOL, "more than {} s from the median", clocks.MAX_OFFSET_MS / 1000),
    (CHANGELOG, "nested at most {} deep", api_shapes.MAX_PAYLOAD_DEPTH),
    (CHANGELOG, "no larger than {} KiB", gateway._BATCH_BYTES / 1024),
    (CHANGELOG, "after some {:,} records", machine.PAGE_SCAN),
    (CHANGELOG, "looked at, or {} MiB", api_transactions.PAGE_CHARS / MIB),
    (CHANGELOG, "no more than {} MiB of an answer", client_calls._ANSWER_BYTES / MIB),
    (CHANGELOG, "no more than {} MiB for each process", local_cluster._LOG_BYTES / MIB),
]
"""What a page says in figures, and where it has them from."""


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


def test_what_the_page_says_decides_a_question_is_there() -> None:
    table = text_of("ARCHITECTURE.md").partition("| question | decided by | in |")[2]
    rows = re.findall(
        r"^\| [^|]+\? \| ([^|]+) \| ([^|]+) \|$", table.partition("\n\n")[0], re.MULTILINE
    )
    assert len(rows) > 20
    for names, files in rows:
        source = "".join(
            (TOP / f"{file}.py").read_text(encoding="utf-8")
            for file in re.findall(r"`([^`]+)`", files)
        )
        for name in re.findall(r"`([^`]+)`", names):
            assert re.search(rf"^(class |def )?{name}\b", source, re.MULTILINE), name


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


@pytest.mark.parametrize(("page", "says", "value"), FIGURES, ids=lambda given: str(given)[:60])
def test_a_figure_of_the_pages_is_that_of_the_code(page: str, says: str, value: object) -> None:
    if isinstance(value, float):
        value = int(value) if value == int(value) else round(value, 6)
    assert says.format(value) in " ".join(text_of(page).split())


def test_what_the_campaign_did_in_all_is_the_sum_of_its_rows() -> None:
    page = " ".join(text_of("docs/reliability.md").split("\n"))
    said = re.search(
        r"All rows together: ([\d,]+) seeds, ([\d,]+) s simulated, ([\d,]+) answers committed and"
        r" ([\d,]+) aborted, ([\d,]+) processes ended\.",
        page,
    )
    assert said is not None
    rows = re.findall(
        r"\| (\d+)-(\d+) \([^|]*\| ([\d,]+) s \|[^|]*\| ([\d,]+) committed, ([\d,]+) aborted,[^|]*"
        r"\| ([\d,]+) \(",
        page,
    )
    assert len(rows) == page.count(" unknown | ") > 30
    whole = [[int(figure.replace(",", "")) for figure in row] for row in rows]
    sums = [last - first + 1 for first, last, *_ in whole], *list(zip(*whole, strict=True))[2:]
    assert said.groups() == tuple(f"{sum(column):,}" for column in sums)

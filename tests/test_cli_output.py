"""The command line where its output cannot be written, and where the command itself breaks."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web

from cluster.cli import submit
from cluster.cli.main import main
from cluster.client import Client
from tests.fake_nodes import Answer, FakeNode, fails, node_beside, shown

BODY = {"id": "order-17", "participants": [{"url": "http://127.0.0.1:9"}]}
BATCH = {"transactions": [BODY, BODY | {"id": "order-18"}]}

Ended = subprocess.CompletedProcess[str]


def ends(outcome: str) -> Answer:
    def one(id: str) -> dict[str, Any]:
        entry = shown(id, outcome)
        entry["branches"][0]["name"] = "caf\u00e9"
        return entry

    async def answer(_: web.Request, body: Any) -> web.StreamResponse:
        if body is None:
            return web.json_response({"transactions": [one("order-17")], "next_after": None})
        if "transactions" in body:
            answers = [one(entry["id"]) for entry in body["transactions"]]
            return web.json_response({"transactions": answers})
        return web.json_response(one(body["id"]))

    return answer


OUTCOMES: dict[int, Answer] = {
    0: ends("committed"),
    1: ends("aborted"),
    3: fails(503, "no_leader"),
}


@pytest.fixture(scope="module")
def node() -> Iterator[FakeNode]:
    with node_beside() as node:
        yield node


@contextmanager
def to_nobody() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@contextmanager
def to_a_full_disk() -> Iterator[int]:
    with open("/dev/full", "w") as full:
        yield full.fileno()


def assent(
    *arguments: str,
    node: FakeNode,
    given: Any = None,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    without: str = "",
) -> Ended:
    """Runs the command in a process; `without`: a shell's redirections, such as `>&-`."""
    command = [sys.executable, "-m", "cluster", *arguments]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {without}', "sh", *command],
        input=None if given is None else json.dumps(given),
        stdout=stdout,
        stderr=stderr,
        text=True,
        check=False,
        env={**os.environ, "ASSENT_NODES": node.url, "PYTHONIOENCODING": "ascii"},
    )


def one_line(text: str) -> bool:
    return text.startswith("assent: ") and text.count("\n") == 1


# --- submit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "options"), [(0, ()), (3, ()), (1, ("--json",)), (3, ("--json",))]
)
def test_the_outcome_decides_the_exit_code_whatever_becomes_of_the_output(
    node: FakeNode, code: int, options: tuple[str, ...]
) -> None:
    node.usual = OUTCOMES[code]
    arguments = ("submit", "--deadline", "0.2", *options)
    run = functools.partial(assent, *arguments, node=node, given=BODY)
    ended = run()
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False)
    assert "order-17" in ended.stdout + ended.stderr
    if code != 3:
        assert "caf\\u00e9" in ended.stdout if options else "caf\\xe9" in ended.stdout

    with to_nobody() as pipe:
        ended = run(stdout=pipe)
    assert ended.returncode == code
    assert one_line(ended.stderr) if code == 3 else ended.stderr == ""

    with to_a_full_disk() as disk:
        for ended in (run(stdout=disk), run(without=">&-")):
            assert ended.returncode == code
            assert ended.stderr.startswith("assent: ")
            assert "order-17" in ended.stderr
            assert "Traceback" not in ended.stderr
        assert run(stdout=disk, stderr=disk).returncode == code
    assert run(without=">&- 2>&-").returncode == code


def test_the_outcomes_of_a_batch_decide_too(node: FakeNode) -> None:
    node.usual = OUTCOMES[1]
    with to_a_full_disk() as disk:
        ended = assent("submit", node=node, given=BATCH, stdout=disk)
    assert ended.returncode == 1
    assert one_line(ended.stderr)
    assert "of the batch 2 aborted; cannot write" in ended.stderr


def test_standard_input_that_is_closed_is_a_mistake(node: FakeNode) -> None:
    ended = assent("submit", node=node, without="<&-")
    assert ended.returncode == 2
    assert one_line(ended.stderr)


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("who would have thought")


@pytest.fixture
def run(node: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ASSENT_NODES", node.url)

    def submitted(body: Any) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(body)))
        return main(["submit"]), capsys.readouterr().err

    return submitted


def test_a_command_that_breaks_under_way_ends_with_unknown_and_says_what_to_ask(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "submit_body", broken)
    monkeypatch.setattr(Client, "submit_many", broken)
    code, told = run(BODY)
    assert code == 3
    assert one_line(told)
    assert "transaction order-17 is unknown" in told
    assert "assent submit --id order-17" in told
    assert "who would have thought" in told
    code, told = run({"participants": BODY["participants"]})
    assert code == 3
    assert "assent submit --id 0" in told, "an id was made before anything was sent"
    code, told = run(BATCH)
    assert code == 3
    assert one_line(told)
    assert "the outcomes of 2 transactions are unknown" in told


def test_a_command_that_breaks_before_it_sends_says_so(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "__init__", broken)
    code, told = run(BODY)
    assert code == 3
    assert "nothing was sent" in told


def test_a_command_that_breaks_after_the_outcome_is_known_ends_with_it(
    run: Any, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "transaction_text", broken)
    for code in (0, 1):
        node.usual = OUTCOMES[code]
        ended, told = run(BODY)
        assert ended == code
        assert one_line(told)
        assert "transaction order-17 is" in told


def test_an_interrupted_command_says_what_to_ask(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "submit_body", interrupted)
    code, told = run(BODY)
    assert code == 130
    assert "assent submit --id order-17" in told


# --- the other commands ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["list", "list --json", "--help", "--version"])
def test_other_commands_say_that_they_cannot_write(node: FakeNode, command: str) -> None:
    node.usual = OUTCOMES[0]
    with to_a_full_disk() as disk:
        ended = assent(*command.split(), node=node, stdout=disk)
    assert ended.returncode == 4
    assert ended.stderr == "assent: cannot write to standard output: No space left on device\n"
    ended = assent(*command.split(), node=node, without=">&-")
    assert ended.returncode == 4
    assert ended.stderr == "assent: cannot write to standard output: it is closed\n"
    with to_nobody() as pipe:
        ended = assent(*command.split(), node=node, stdout=pipe)
    assert (ended.returncode, ended.stderr) == (4, "")


def test_what_a_terminal_cannot_encode_is_escaped(node: FakeNode) -> None:
    node.usual = OUTCOMES[0]
    ended = assent("list", node=node)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "caf\\xe9" in ended.stdout

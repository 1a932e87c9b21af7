"""The command line: exit codes, one line for a mistake, JSON for machines."""

from __future__ import annotations

import importlib.metadata
import io
import json
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cluster import __main__ as program
from cluster.cli.main import main
from tests.fake_nodes import Answer, FakeNode, committed, fails, node_beside, shown

Run = Callable[..., tuple[int, str, str]]

BODY = {"participants": [{"name": "stock", "url": "http://127.0.0.1:9", "payload": {}}]}
TWO_NODES = "".join(
    f'[nodes.{name}]\napi = "127.0.0.1:{port}"\nraft = "127.0.0.1:{port + 1}"\n'
    for name, port in (("a", 5000), ("b", 5002))
)


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with node_beside() as node:
        yield node


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in an empty directory; (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASSENT_NODES", raising=False)

    def run_command(*arguments: str, given: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(given))
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["frob"], "frob"),
        (["get"], "ID"),
        (["get", "a", "--frob"], "--frob"),
        (["get", "a", "--nodes", "http://a/b"], "http://a/b"),
        (["submit", "nowhere.json"], "nowhere.json"),
        (["submit"], "not JSON"),
        (["submit", "none.json"], "at least one"),
        (["submit", "more.json"], "wait: unknown field"),
        (["submit", "deep.json"], "nested too deeply"),
        (["submit", "bad-id.json"], "submit: id: must be 1 to 64"),
        (["submit", "--id", "a b"], "'a b' is no transaction's id"),
        (["submit", "--id", ""], "'' is no transaction's id"),
        (["submit", "--timeout-ms", "0"], "0 must be at least 1"),
        (["submit", "--timeout-ms", "x"], "'x' is not a whole number"),
        (["get", ""], "'' is no transaction's id"),
        (["get", ".."], "not . or .."),
        (["watch", "a/b"], "'a/b' is no transaction's id"),
        (["resolve", "", "--abort", "--reason", "r"], "'' is no transaction's id"),
        (["retry", ""], "'' is no transaction's id"),
        (["list", "--state", "bogus"], "'bogus' is no state; there are active,"),
        (["list", "--state", "refused,"], "'' is no state"),
        (["list", "--limit", "0"], "at least 1"),
        (["list", "--older-than-ms", "-1"], "--older-than-ms"),
        (["list", "--after", "x"], "--after"),
        (["get", "a", "--nodes", "ada:secret@127.0.0.1:8101"], "no user or password"),
        (["get", "a", "--nodes", "n..1:8101"], "'n..1:8101' is not a node's address"),
        (["get", "a", "--wait-ms", "-4"], "--wait-ms"),
        (["get", "a", "--deadline", "0"], "--deadline"),
        (["get", "a", "--deadline", "nan"], "--deadline"),
        (["resolve", "a", "--abort"], "--reason"),
        (["resolve", "a", "--reason", "r"], "--abort"),
        (["resolve", "a", "--branch", "1", "--reason", "r"], "--effect"),
        (["resolve", "a", "--abort", "--effect", "unknown", "--reason", "r"], "--effect"),
        (["cluster"], "COMMAND"),
        (["cluster", "transfer", "n1", "n2"], "n2"),
        (["up", "--nodes", "4"], "--nodes 4"),
        (["up", "--base-port", "80"], "80"),
        (["up", "--base-port", "x"], "x"),
        (["demo", "--data-dir", "."], "exists"),
        (["demo", "--seconds", "0"], "0"),
        (["node", "n1"], "--config"),
        (["node", "n1", "--config", "nowhere.toml"], "nowhere.toml"),
        (["node", "a", "--config", "two.toml"], "nodes: 2"),
        (["node", "zz", "--config", "three.toml"], "'zz'"),
        (["node", "c", "--config", "open.toml"], "nodes.c: the Raft port"),
        (["node", "c", "--config", "three.toml", "--data-dir", "none.json"], "not a directory"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, arguments: list[str], named: str
) -> None:
    (tmp_path / "two.toml").write_text(TWO_NODES)
    third = '[nodes.c]\napi = "127.0.0.1:5004"\nraft = "127.0.0.1:5005"\n'
    (tmp_path / "three.toml").write_text(TWO_NODES + third)
    (tmp_path / "none.json").write_text(json.dumps({"transactions": []}))
    (tmp_path / "more.json").write_text(json.dumps({"transactions": [BODY], "wait": "none"}))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "bad-id.json").write_text(json.dumps(BODY | {"id": "a b"}))
    everywhere = 'raft_bind = "0.0.0.0:5005"\n'
    (tmp_path / "open.toml").write_text(TWO_NODES + third + everywhere)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("assent: ")
    assert named in err
    assert err.count("\n") == 1
    assert "secret" not in err


def test_a_busy_port_is_one_line_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        code, out, err = run("up", "--base-port", str(port - 1))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"port {port} (API of n1) is in use" in err
    assert not (tmp_path / "assent-data").exists()


@pytest.mark.parametrize("command", ["--help", "up", "node", "demo", "submit", "watch", "resolve"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"] if command != "--help" else [command])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: assent")


def test_submit_says_which_timeouts_a_cluster_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """It refuses none of them itself: a cluster's settings may allow more or less."""
    with pytest.raises(SystemExit):
        main(["submit", "--help"])
    assert "usually 100 to 3600000" in " ".join(capsys.readouterr().out.split())


def test_a_data_directory_that_cannot_be_made_is_a_mistake(tmp_path: Path) -> None:
    settings = tmp_path / "one.toml"
    settings.write_text('[nodes.a]\napi = "127.0.0.1:1"\nraft = "127.0.0.1:2"')
    node = ["node", "a", "--config", str(settings), "--bootstrap", "--data-dir", "/proc/nowhere"]
    command = [sys.executable, "-m", "cluster", *node, "--log-level", "error"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("assent: a: cannot make /proc/nowhere: ")
    assert ended.stderr.count("\n") == 1
    assert "durable" not in ended.stderr


class _Interrupted(MetaPathFinder):
    """Ctrl-C while the command is imported."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "cluster.cli.main":
            raise KeyboardInterrupt


def test_ctrl_c_ends_the_command_without_a_traceback_also_while_it_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cluster.cli.main.main", interrupted)
        assert program.main() == 130
    monkeypatch.delitem(sys.modules, "cluster.cli.main")
    monkeypatch.setattr(sys, "meta_path", [_Interrupted(), *sys.meta_path])
    assert program.main() == 130


def test_what_is_installed_is_that_command() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"assent": f"{program.__name__}:main"}


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"assent {importlib.metadata.version('assent')}\n"


# --- transactions ---------------------------------------------------------------------------------


def test_submit_tells_the_outcome_by_its_exit_code(
    run: Run, node: FakeNode, tmp_path: Path
) -> None:
    async def aborted(_: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response(shown(body["id"], "aborted") | {"reason": "out of stock"})

    file = tmp_path / "order.json"
    file.write_text(json.dumps(BODY))
    nodes = ("--nodes", node.url)
    code, out, _ = run("submit", str(file), "--id", "order-17", "--wait", "decision", *nodes)
    assert code == 0
    assert out.startswith("committed  order-17\n")
    assert node.bodies()[0] == BODY | {"id": "order-17", "wait": "decision"}

    node.usual = aborted
    code, out, _ = run("submit", "-", *nodes, given=json.dumps(BODY))
    assert code == 1
    assert out.startswith("aborted ")
    assert "out of stock" in out

    node.usual = fails(409, "transaction_id_conflict")
    code, out, err = run("submit", str(file), "--id", "order-17", *nodes)
    assert (code, out) == (2, "")
    assert err == "assent: it is transaction_id_conflict\n"


def test_submit_without_an_outcome_exits_with_3_and_says_the_id(run: Run, node: FakeNode) -> None:
    node.usual = fails(503, "no_leader")
    arguments = ("submit", "--nodes", node.url, "--deadline", "0.2", "--json")
    code, out, err = run(*arguments, given=json.dumps(BODY | {"id": "order-17"}))
    assert code == 3
    assert json.loads(out)["id"] == "order-17"
    assert json.loads(out)["outcome"] is None
    assert err.count("\n") == 1
    assert f"assent submit --id order-17 --nodes {node.url}\n" in err


def test_the_command_that_asks_again_can_be_typed_as_it_is_told(
    run: Run, node: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSENT_NODES", node.url)
    node.usual = fails(503, "no_leader")
    (tmp_path / "my order.json").write_text(json.dumps(BODY))
    code, _, err = run("submit", "my order.json", "--deadline", "0.2")
    assert code == 3
    told = err.partition("ask again with the same content: ")[2]
    program, *arguments = shlex.split(told)
    assert program == "assent"
    node.usual = committed
    assert run(*arguments)[0] == 0
    assert {body["id"] for body in node.bodies()} == {arguments[2]}


def test_of_a_refused_id_submit_says_what_helps(run: Run, node: FakeNode) -> None:
    async def refused(_: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response(shown(body["id"], None, state="refused"))

    node.usual = refused
    arguments = ("submit", "--nodes", node.url, "--id", "order-17")
    code, out, err = run(*arguments, given=json.dumps(BODY))
    assert (code, out) == (3, "")
    assert "transaction order-17" in err
    assert "submit it under a new id" in err
    assert "ask again" not in err


def test_a_batch_exits_with_what_needs_attention_most(run: Run, node: FakeNode) -> None:
    def answering(*outcomes: str) -> Callable[..., Any]:
        async def answer(_: web.Request, body: Any) -> web.StreamResponse:
            error = {"code": "bad_request", "message": "no", "details": {}}
            answers: list[Any] = [
                {"error": error} if outcome == "error" else shown(entry["id"], outcome)
                for outcome, entry in zip(outcomes, body["transactions"], strict=True)
            ]
            return web.json_response({"transactions": answers})

        return answer

    batch = json.dumps({"transactions": [BODY, BODY]})
    for outcomes, expected in (
        (("committed", "committed"), 0),
        (("committed", "aborted"), 1),
        (("error", "aborted"), 2),
    ):
        node.usual = answering(*outcomes)
        code, out, _ = run("submit", "--nodes", node.url, "--json", given=batch)
        assert code == expected
        assert len([json.loads(line) for line in out.splitlines()]) == 2
    node.usual = fails(503, "no_leader")
    code, out, _ = run("submit", "--nodes", node.url, "--deadline", "0.2", given=batch)
    assert code == 3
    assert out.count("unknown") >= 2


def test_what_a_participant_or_an_operator_wrote_cannot_pass_for_lines_of_ours(
    run: Run, node: FakeNode
) -> None:
    by_hand = {
        "branch_id": "1",
        "effect": "unknown",
        "actor": "ada",
        "at": "noon",
        "reason": "x\ny",
    }
    told = {"reason": "no\ncommitted  a\x1b[31m", "history": [by_hand]}

    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        entry = shown("a", "aborted") | told
        whole = {"transactions": [entry], "next_after": None}
        return web.json_response(whole if request.path == "/v1/transactions" else entry)

    node.usual = answer
    code, out, _ = run("list", "--nodes", node.url)
    assert code == 0
    assert len(out.splitlines()) == 2
    code, out, _ = run("get", "a", "--nodes", node.url)
    assert out.startswith("aborted    a: no\\ncommitted  a\\x1b[31m\n")
    assert "by hand   branch 1 ended (unknown) by ada at noon: x\\ny\n" in out


def test_attempts_are_shown_as_long_as_somebody_counts_them(run: Run, node: FakeNode) -> None:
    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        entry = shown("a", "committed", "committing")
        entry["branches"][0]["attempts"] = 7
        if request.path.endswith("finished"):
            entry |= {"id": "finished", "finished_at": "2026-01-01T00:00:00.000Z"}
            entry["branches"][0]["attempts"] = 0
        return web.json_response(entry)

    node.usual = answer
    _, out, _ = run("get", "a", "--nodes", node.url)
    assert out.splitlines()[-1].split() == ["1", "stock", "prepared", "7"]
    _, out, _ = run("get", "finished", "--nodes", node.url)
    assert out.splitlines()[-1].split() == ["1", "stock", "prepared"]


def test_nodes_come_from_the_environment(
    run: Run, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.usual = committed
    monkeypatch.setenv("ASSENT_NODES", f"127.0.0.1:1,{node.url}")
    code, out, _ = run("get", "order-17", "--json")
    assert code == 0
    assert json.loads(out)["id"] == "order-17"


def test_a_cluster_that_does_not_answer_is_one_line_and_exit_code_3(run: Run) -> None:
    code, out, err = run("list", "--nodes", "127.0.0.1:1", "--deadline", "0.2")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert "127.0.0.1:1" in err
    assert "--nodes" in err, "what next"


def test_reading_and_operating(run: Run, node: FakeNode) -> None:
    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        if request.path == "/v1/transactions":
            entries = [shown("a", "committed"), shown("b", None)]
            return web.json_response({"transactions": entries, "next_after": "b"})
        return web.json_response(shown("a", "committed"))

    node.usual = answer
    node.known = [node.url]
    nodes = ("--nodes", node.url)
    code, out, _ = run("list", *nodes)
    assert code == 0
    assert "committed" in out
    assert "--after b" in out
    code, out, _ = run("watch", "a", *nodes)
    assert code == 0
    assert out == "committed  stock prepared\n"
    code, out, _ = run("resolve", "a", "--abort", "--reason", "lost", "--actor", "ada", *nodes)
    assert code == 0
    assert ("POST", "/v1/transactions/a/resolve") in [entry[:2] for entry in node.requests]
    assert node.bodies()[-1] == {"actor": "ada", "reason": "lost", "outcome": "abort"}
    code, out, _ = run("retry", "a", "--json", *nodes)
    assert code == 0
    assert json.loads(out)["id"] == "a"
    code, out, _ = run("cluster", "status", *nodes)
    assert code == 0
    assert "led by n0 in term 3" in out
    assert node.url in out


def test_a_transfer_says_who_led_and_who_leads_now(run: Run, node: FakeNode) -> None:
    status = {"cluster": "test", "self": "n1", "leader": "n2", "term": 4, "nodes": []}

    async def answer(_: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response(status | {"self": body["node"] or "n1"})

    node.usual = answer
    nodes = ("--nodes", node.url)
    assert run("cluster", "transfer", *nodes) == (0, "n1 led, n2 leads now, in term 4\n", "")
    assert run("cluster", "transfer", "n2", *nodes) == (0, "n2 leads already, in term 4\n", "")
    assert node.requests[-1] == ("POST", "/v1/cluster/leader", {"node": "n2"})
    code, out, _ = run("cluster", "transfer", "--json", *nodes)
    assert (code, json.loads(out)) == (0, status)
    for status_code, why in ((409, "not_handed_over"), (400, "bad_request")):
        node.usual = fails(status_code, why)
        code, out, err = run("cluster", "transfer", "n9", *nodes)
        assert (code, out, err) == (2, "", f"assent: it is {why}\n")
    node.usual = fails(503, "no_leader")
    code, out, err = run("cluster", "transfer", *nodes, "--deadline", "0.2")
    assert (code, out, err.count("\n")) == (3, "", 1)


def test_an_answer_with_fields_of_another_type_is_one_line(run: Run, node: FakeNode) -> None:
    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        entry = shown("a", "aborted") | {"reason": ["out", "of", "stock"]}
        whole = {"transactions": [entry], "next_after": None}
        return web.json_response(whole if request.path == "/v1/transactions" else entry)

    node.usual = answer
    for command in (("get", "a"), ("list",), ("watch", "a"), ("retry", "a")):
        code, out, err = run(*command, "--nodes", node.url)
        assert (code, out) == (3, "")
        assert err.count("\n") == 1
        assert "as reason that is not text" in err


def bounded(matches: dict[int, str], end: int) -> Answer:
    """A node that looks at one transaction for a page: of the numbers below `end` few match."""

    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        number = int(request.query.get("after", end)) - 1
        entries = [shown(matches[number], "committed")] if number in matches else []
        after = str(number) if number else None
        return web.json_response({"transactions": entries, "next_after": after})

    return answer


def test_list_asks_for_more_than_a_page_in_pages(run: Run, node: FakeNode) -> None:
    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        after = int(request.query.get("after", 9_000)) - int(request.query["limit"])
        entries = [shown(f"t{after + n}", "committed") for n in range(int(request.query["limit"]))]
        return web.json_response({"transactions": entries, "next_after": str(after)})

    node.usual = answer
    code, out, _ = run("list", "--limit", "2500", "--nodes", node.url)
    assert code == 0
    assert out.count("\nt") >= 2500
    asked = [path.partition("limit=")[2].partition("&")[0] for _, path, _ in node.requests]
    assert asked == ["1000", "1000", "500"]


def test_list_goes_on_until_it_has_as_many_as_were_asked_for(run: Run, node: FakeNode) -> None:
    node.usual = bounded({7: "first", 4: "second", 2: "third"}, end=9)
    arguments = ("list", "--participant", "stock", "--nodes", node.url)
    code, out, _ = run(*arguments, "--limit", "2")
    assert code == 0
    assert "first" in out
    assert "second" in out
    assert out.endswith("there may be more: --after 4\n")
    paths = [path for _, path, _ in node.requests]
    assert len(paths) == 5
    assert paths[0].endswith("?participant=stock&limit=2")
    assert paths[-1].endswith("?participant=stock&limit=1&after=5"), "one was found before"
    _, out, _ = run(*arguments)
    assert "third" in out
    assert "--after" not in out
    _, out, _ = run(*arguments, "--json")
    page = json.loads(out)
    assert [one["id"] for one in page["transactions"]] == ["first", "second", "third"]
    assert page["next_after"] is None


def test_list_says_no_transactions_only_where_it_has_looked_at_all(
    run: Run, node: FakeNode
) -> None:
    node.usual = bounded({1: "far"}, end=1_000)
    arguments = ("list", "--participant", "stock", "--nodes", node.url)
    code, out, _ = run(*arguments)
    assert code == 0
    assert out.startswith("no transactions in the first 100 pages; older ones were not looked at\n")
    assert out.endswith("there may be more: --after 900\n")
    assert len(node.requests) == 100
    _, out, _ = run(*arguments, "--after", "900")
    assert out.startswith("no transactions in the first 100 pages after 900; ")
    code, out, _ = run(*arguments, "--after", "50")
    assert "far" in out
    node.usual = bounded({}, end=3)
    assert run(*arguments)[1] == "no transactions\n"

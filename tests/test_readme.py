"""The README's commands and code are the ones that work."""

from __future__ import annotations

import asyncio
import re
import runpy
import shlex
from pathlib import Path

from aiohttp import ClientSession, web

from cluster.cli.main import _parser as assent_parser
from cluster.local.cluster import SERVICES
from cluster.raft.transport import refuse_beyond_loopback
from cluster.settings import load_settings, parse_settings
from participants.__main__ import _parser as participants_parser

TOP = Path(__file__).resolve().parent.parent
README = (TOP / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_readmes_test_command() -> None:
    commands = [block.strip() for block in blocks("bash")]
    assert len(commands) == 2, "one command to run it, one to test it"
    assert commands[0].endswith("assent demo")
    assert commands[1] in (TOP / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_readmes_cluster_of_three_machines_is_one() -> None:
    (text,) = blocks("toml")
    settings = parse_settings(text)
    assert [node.id for node in settings.nodes] == ["n1", "n2", "n3"]
    for node in settings.nodes:
        refuse_beyond_loopback((node.raft_bind.host, node.raft_bind.port))


def test_the_procfile_starts_every_node_of_its_settings_and_the_sample_services() -> None:
    lines = (TOP / "Procfile").read_text(encoding="utf-8").splitlines()
    started, config = [], Path()
    for line in lines:
        if line.startswith("#"):
            continue
        name, _, command = line.partition(": ")
        program, *arguments = shlex.split(command)
        if program == "assent":
            options = assent_parser().parse_args(arguments)
            config = options.config
            assert (options.id, options.bootstrap) == (name, True)
        else:
            assert (program, *arguments[:2]) == ("python", "-m", "participants")
            assert participants_parser().parse_args(arguments[2:]).service == name
        started.append(name)
    nodes = [node.id for node in load_settings(TOP / config).nodes]
    assert started == [*nodes, *SERVICES]


def test_the_readmes_participant_sells_a_seat_once(tmp_path: Path) -> None:
    source = next(block for block in blocks("python") if "class Seats" in block)
    script = tmp_path / "seats.py"
    script.write_text(source, encoding="utf-8")
    application: web.Application = runpy.run_path(str(script))["application"](tmp_path / "db")

    async def scenario() -> None:
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/seats"
        async with ClientSession() as session:

            async def ask(operation: str, transaction_id: str) -> tuple[int, dict[str, object]]:
                message = {
                    "transaction_id": transaction_id,
                    "branch_id": "1",
                    "payload": {"seat": 7},
                    "fingerprint": "f",
                    "expires_at": "2100-01-01T00:00:00.000Z",
                    "coordinators": [],
                }
                async with session.post(f"{url}/{operation}", json=message) as response:
                    return response.status, await response.json()

            assert (await ask("prepare", "t1"))[1]["vote"] == "yes"
            refused = (await ask("prepare", "t2"))[1]
            assert (refused["vote"], refused["reason"]) == ("no", "that seat is taken")
            assert (await ask("rollback", "t1"))[0] == 200
            assert (await ask("prepare", "t3"))[1]["vote"] == "yes"
            assert (await ask("commit", "t3"))[0] == 200
            assert (await ask("commit", "t3"))[0] == 200
            assert (await ask("prepare", "t4"))[1]["vote"] == "no"
        await runner.cleanup()

    asyncio.run(scenario())

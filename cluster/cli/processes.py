"""The commands that run processes: up, node, demo."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
from pathlib import Path
from typing import Any

from cluster.cli.arguments import number_in
from cluster.cli.output import UserMistake, print_json, table
from cluster.local.cluster import LocalCluster
from cluster.local.demo import run_demo
from cluster.local.sample_order import order
from cluster.logs import LogFormat, configure_logs
from cluster.settings import load_settings

_DATA_DIR = Path("assent-data")
_LOOK_EVERY_S = 0.2


def add_commands(commands: Any) -> None:
    """Add these commands to the subparsers of `assent`."""
    _add_up(commands)
    _add_node(commands)
    _add_demo(commands)


def _add_up(commands: Any) -> None:
    up = commands.add_parser(
        "up",
        help="a whole local cluster with the sample services",
        description="Start a cluster and the sample services on this machine. Ctrl-C stops them;"
        " what was decided is there at the next start.",
    )
    up.add_argument(
        "--nodes", type=int, metavar="N", help="how many, for a new cluster: 1, 3 or 5; default 3"
    )
    up.add_argument(
        "--data-dir", type=Path, metavar="DIR", default=_DATA_DIR, help=f"default: ./{_DATA_DIR}"
    )
    up.add_argument(
        "--base-port",
        type=_base_port,
        metavar="N",
        help="API at N+1..., Raft at N+101..., services at N+201...; default: 8101, 7101, 9001...",
    )
    up.add_argument("--no-fsync", action="store_true", help=_NO_FSYNC)
    up.add_argument("--json", action="store_true", help="say what runs in one line of JSON")
    up.set_defaults(run=_up)


def _add_node(commands: Any) -> None:
    node = commands.add_parser(
        "node",
        help="one node of a cluster",
        description="Run one node of the cluster that the file describes, until SIGTERM or Ctrl-C.",
    )
    node.add_argument("id", metavar="ID", help="as in the file: [nodes.ID]")
    node.add_argument(
        "--config", type=Path, metavar="FILE", required=True, help="the cluster's cluster.toml"
    )
    node.add_argument(
        "--data-dir", type=Path, metavar="DIR", help=f"this node's own; default: ./{_DATA_DIR}/ID"
    )
    node.add_argument(
        "--bootstrap",
        action="store_true",
        help="the first start of a new cluster; changes nothing where there is data",
    )
    node.add_argument("--no-fsync", action="store_true", help=_NO_FSYNC)
    node.add_argument(
        "--log-format",
        choices=[*LogFormat],
        default=LogFormat.TEXT,
        help="of what is written to standard error; default: %(default)s",
    )
    node.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="the least that is written; info, the default, is seven lines for each transaction",
    )
    node.set_defaults(run=_node)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="the story: transactions run, the leader is killed, nothing is lost",
        description="Start a cluster and services, run orders, kill the leader in the middle of"
        " them, and check with figures that nothing is lost. Exits 0 only if every check held.",
    )
    demo.add_argument("--seconds", type=_seconds, default=12.0, help="of load; default: 12")
    demo.add_argument("--data-dir", type=Path, metavar="DIR", help="a new one, which is kept")
    demo.add_argument("--json", action="store_true", help="only the figures, in one line of JSON")
    demo.set_defaults(run=_demo)


_NO_FSYNC = "do not sync the journal: faster, and a power cut of all nodes may lose decisions"


def _base_port(text: str) -> int:
    if not text.isdigit() or not 1_024 <= int(text) <= 65_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1024 to 65000")
    return int(text)


def _seconds(text: str) -> float:
    seconds = number_in(text)
    if not 3 <= seconds <= 3_600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 3 to 3600")
    return seconds


# --- node and demo --------------------------------------------------------------------------------


def _node(arguments: argparse.Namespace) -> int:
    # Imported here, so that the other commands start without a node's whole machinery.
    from cluster.node import run_node  # noqa: PLC0415
    from cluster.profiling import profiled  # noqa: PLC0415
    from cluster.raft.transport import NotLoopback, refuse_beyond_loopback  # noqa: PLC0415

    settings = load_settings(arguments.config)
    raft = settings.node(arguments.id).raft_bind
    try:
        refuse_beyond_loopback((raft.host, raft.port))
    except NotLoopback as error:
        raise UserMistake(f"{arguments.config}: nodes.{arguments.id}: {error}") from None
    data_dir = arguments.data_dir or _DATA_DIR / arguments.id
    if data_dir.exists() and not data_dir.is_dir():
        raise UserMistake(f"{data_dir} is not a directory; give --data-dir one of the node's own")
    configure_logs(LogFormat(arguments.log_format), arguments.log_level.upper(), node=arguments.id)

    with profiled(arguments.id):
        return run_node(
            settings,
            arguments.id,
            data_dir=data_dir,
            bootstrap=arguments.bootstrap,
            fsync=not arguments.no_fsync,
        )


def _demo(arguments: argparse.Namespace) -> int:
    if arguments.data_dir is not None and arguments.data_dir.exists():
        raise UserMistake(f"demo: {arguments.data_dir} exists; the demo needs a new directory")
    report = asyncio.run(
        run_demo(arguments.seconds, data_dir=arguments.data_dir, quiet=arguments.json)
    )
    if arguments.json:
        print_json(report.as_json())
    return 0 if report.held else 1


# --- up -------------------------------------------------------------------------------------------


def _up(arguments: argparse.Namespace) -> int:
    if arguments.nodes is not None and arguments.nodes not in (1, 3, 5, 7, 9):
        raise UserMistake(f"up: --nodes {arguments.nodes}: have 1 (for development), 3 or 5")
    local = LocalCluster(
        arguments.data_dir,
        nodes=arguments.nodes,
        base_port=arguments.base_port,
        fsync=not arguments.no_fsync,
    )
    return asyncio.run(_run_up(local, as_json=arguments.json))


async def _run_up(local: LocalCluster, *, as_json: bool) -> int:
    """Until SIGINT or SIGTERM, also while it starts."""
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    stop = asyncio.create_task(asked_to_stop.wait())
    start = asyncio.create_task(local.up())
    try:
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            return 0
        start.result()
        print_json(_shown(local)) if as_json else print(await _told(local), flush=True)
        await _tell_of_ends(local, stop, quiet=as_json)
        if not as_json:
            print("stopping", flush=True)
        return 0
    finally:
        start.cancel()
        stop.cancel()
        await asyncio.gather(start, stop, return_exceptions=True)
        await local.down()


async def _tell_of_ends(local: LocalCluster, stop: asyncio.Task[Any], *, quiet: bool) -> None:
    """Until `stop` is done: say so when a process ends, and how to have it back."""
    while not stop.done():
        await asyncio.wait({stop}, timeout=_LOOK_EVERY_S)
        local.bound_logs()
        for name in local.ended_unasked():
            if not quiet:
                again = shlex.join(local.command(name))
                code = local.exit_code(name)
                print(
                    f"{name} has ended ({_how(code)}). To have it back:\n\n  {again}\n", flush=True
                )


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _shown(local: LocalCluster) -> dict[str, Any]:
    return {
        "cluster": local.settings.name,
        "data_dir": str(local.data_dir),
        "nodes": [
            {"id": name, "api": local.url(name), "pid": local.pid(name)} for name in local.node_ids
        ],
        "services": [
            {"name": name, "url": local.url(name), "pid": local.pid(name)}
            for name in local.services
        ],
    }


async def _told(local: LocalCluster) -> str:
    leader = await local.leader()
    rows = [
        (name, local.url(name), f"pid {local.pid(name)}", "leads" if name == leader else "")
        for name in (*local.node_ids, *local.services)
    ]
    lines = table(("", "", "", ""), rows)[1:]
    body = json.dumps({"participants": order(local.url, "ada", "A-1", 2)})
    curl = (
        f"curl -sL -H 'Content-Type: application/json' {local.node_urls[0]}/v1/transactions"
        f" -d {shlex.quote(body)}"
    )
    warnings = [f"warning: {text}" for text in local.settings.warnings()]
    return "\n".join(
        [
            f"cluster {local.settings.name} is up; its data is in {local.data_dir}",
            *warnings,
            "",
            *(f"  {line}" for line in lines),
            "",
            "A transaction over the three services:",
            "",
            f"  {curl}",
            "",
            "Ctrl-C stops it; what was decided is there at the next start.",
        ]
    )

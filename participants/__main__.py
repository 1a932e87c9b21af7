"""Runs one participant as a process: `python -m participants inventory --port 9002 --data-dir DIR`.

It prints one line when it is ready. SIGTERM and SIGINT end it cleanly, with exit code 0. A port
that is taken, or a file that is not ours, is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from participants import activity, bench, event_loop, inventory, process, profile
from participants.inquiry import InquirySettings
from participants.logs import configure_logs
from participants.sdk import ParticipantSettings
from participants.simulated import Simulated
from participants.store import StoreError

SHUTDOWN_TIMEOUT_S = 5.0
"""How long calls under way may take to end; what has not been answered will be asked again."""


class CannotStart(Exception):
    """One line that says what, which, and what next."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    configure_logs(options.log_level.upper())
    process.prepare_to_serve()
    try:
        event_loop.run(_serve(options))
    except (CannotStart, event_loop.NoSuchLoop) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m participants",
        description="Run a participant: a sample, or a simulated one.",
    )
    services = parser.add_subparsers(dest="service", required=True, metavar="SERVICE")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    shared.add_argument("--port", type=_port, required=True, help="0: any that is free")
    shared.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning"),
        help="the least that is written to standard error; default: %(default)s",
    )
    shared.add_argument(
        "--inquire-after",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long a prepared branch waits before it inquires; default: %(default)s",
    )
    for name, what in (("profile", "users"), ("inventory", "stock"), ("activity", "a log")):
        service = services.add_parser(name, parents=[shared], help=f"sample service: {what}")
        service.add_argument("--data-dir", type=Path, required=True, help="where its database is")
        if name == "inventory":
            service.add_argument(
                "--stock",
                type=_quantity,
                default=1_000_000,
                help="of an article that is asked for the first time; default: %(default)s",
            )
            service.add_argument(
                "--item",
                type=_item,
                action="append",
                default=[],
                metavar="SKU=QUANTITY",
                help="an article's stock, if it is not there yet; may be repeated",
            )
    simulated = services.add_parser("simulated", parents=[shared], help="does wrong when told to")
    simulated.add_argument("--data-dir", type=Path, help="without one it forgets what it promised")
    simulated.add_argument("--plain", action="store_true", help="not built on the SDK")
    measured = services.add_parser("bench", parents=[shared], help="several, for measurements")
    measured.add_argument("--count", type=_count, default=3, help="default: %(default)s")
    measured.add_argument("--data-dir", type=Path, help="SQLite there; without one: in memory")
    measured.add_argument("--plain", action="store_true", help="not built on the SDK; in memory")
    measured.add_argument("--no-batches", action="store_true", help="one message per request")
    measured.add_argument("--hang", action="store_true", help="prepare is never answered")
    return parser


def _application(options: argparse.Namespace, settings: ParticipantSettings) -> web.Application:
    match options.service:
        case "profile":
            return profile.application(options.data_dir, settings)
        case "inventory":
            items = dict(options.item)
            return inventory.application(options.data_dir, options.stock, items, settings)
        case "activity":
            return activity.application(options.data_dir, settings)
        case "bench":
            settings = replace(settings, batches=not options.no_batches)
            return bench.application(
                options.count,
                plain=options.plain,
                hangs=options.hang,
                directory=options.data_dir,
                settings=settings,
            )
        case _:
            simulated = Simulated(
                sdk=not options.plain, directory=options.data_dir, settings=settings
            )
            return simulated.application()


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = ParticipantSettings(inquiry=InquirySettings(first_after_s=options.inquire_after))
    runner = web.AppRunner(
        _application(options, settings),
        access_log=None,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        try:
            await runner.setup()
            site = web.TCPSite(runner, options.host, options.port, backlog=1024)
            await site.start()
        except StoreError as error:
            raise CannotStart(f"{options.service}: {error}") from None
        except (OSError, UnicodeError) as error:
            where = f"{options.host}:{options.port}"
            why = _why_not_there(error)
            raise CannotStart(f"{options.service}: cannot listen on {where}: {why}") from None
        host, port = runner.addresses[0][:2]
        print(f"{options.service} ready at http://{host}:{port} (pid {os.getpid()})", flush=True)
        await stop.wait()


def _why_not_there(error: OSError | UnicodeError) -> str:
    """Why a port cannot be opened, and what next."""
    match error:
        case UnicodeError() | socket.gaierror():
            return "the host has no address; give --host an address of this machine"
        case OSError(errno=errno.EADDRNOTAVAIL):
            return "the host is another machine; give --host an address of this one"
        case _:
            what = os.strerror(error.errno or 0)
            return f"{what}; choose another --port, or stop what holds it"


def _port(text: str) -> int:
    if not (text.isdigit() and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _count(text: str) -> int:
    if not (text.isdigit() and 1 <= int(text) <= 256):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 256")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to an hour")
    return seconds


def _quantity(text: str) -> int:
    if not (text.isdigit() and len(text) <= 12):
        raise argparse.ArgumentTypeError(f"{text!r} is not a quantity")
    return int(text)


def _item(text: str) -> tuple[str, int]:
    sku, _, quantity = text.partition("=")
    if not sku:
        raise argparse.ArgumentTypeError(f"{text!r} is not SKU=QUANTITY")
    return sku, _quantity(quantity)


if __name__ == "__main__":
    sys.exit(main())

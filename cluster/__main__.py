"""The command `assent`, also `python -m cluster`. What it needs takes a while to be imported, and
Ctrl-C ends it meanwhile, too, without a traceback. SIGTERM ends it as Ctrl-C does, so that what was
made in a directory for temporary files goes; `node` and `up` hear it themselves, and before they do
it ends them at once.
"""

import signal
import sys


def main() -> int:
    """Runs the command that was typed; its exit code."""
    if sys.argv[1:2] not in (["node"], ["up"]):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from cluster.cli.main import main as run  # noqa: PLC0415 - see above

        return run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())

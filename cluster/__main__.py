"""The command `assent`, also `python -m cluster`. What it needs takes a while to be imported, and
Ctrl-C ends it meanwhile, too, without a traceback.
"""

import signal
import sys


def main() -> int:
    """Runs the command that was typed; its exit code."""
    try:
        from cluster.cli.main import main as run  # noqa: PLC0415 - see above

        return run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())

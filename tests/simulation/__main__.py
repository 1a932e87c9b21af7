"""The command line: `python -m tests.simulation run | replay | mutants`."""

import sys

from tests.simulation.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

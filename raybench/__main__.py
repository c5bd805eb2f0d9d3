"""``python -m raybench`` and the console command."""

import sys

from raybench.cli import main


def run() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(main())


if __name__ == "__main__":
    run()

"""`python -m engine`, and the `tailrace` command."""

import sys

from engine.cli.application import main as run_command_line


def main() -> None:
    """Run the command line of this process and end it with the command's exit code."""
    sys.exit(run_command_line())


if __name__ == "__main__":
    main()

"""The `tailrace` command, before anything else of ours is imported: is the module `engine` ours?

Strategy: `engine` is a usual name. Where a user's own module of that name comes first on Python's
path, our imports would run the user's code, or end in a traceback. So Python is asked where it
would find the name, and nothing is imported until the answer is known. This module has a name of
its own, and imports nothing of ours by itself, so that no folder stands in its way.
"""

import importlib.util
import os
import sys

_EXIT_CONFIGURATION = 78
_PACKAGE = "engine"


def require_own_engine() -> None:
    """Return where `import engine` means Tailrace's package; else ImportError, in one sentence."""
    home = os.path.dirname(os.path.realpath(__file__))
    spec = importlib.util.find_spec(_PACKAGE)
    found = None if spec is None else spec.origin
    if found is None:
        raise ImportError(
            f"Tailrace's own module {_PACKAGE} is not in {home}: install Tailrace again.",
            name="tailrace",
        )
    if os.path.dirname(os.path.realpath(found)) != os.path.join(home, _PACKAGE):
        raise ImportError(
            f"Python finds another module named {_PACKAGE} before Tailrace's own, {found}: start "
            "Tailrace in another folder, or take that module's folder out of PYTHONPATH.",
            name="tailrace",
        )


def main() -> None:
    """Run the command line of this process and end it with the command's exit code."""
    try:
        require_own_engine()
    except ImportError as error:
        print(f"tailrace: {error}", file=sys.stderr)
        sys.exit(_EXIT_CONFIGURATION)
    from engine.__main__ import main as run

    run()

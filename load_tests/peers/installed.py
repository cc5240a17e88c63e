"""What `make setup-peers` has installed: an environment of their own, so that the peers' packages
and the engine's never have to agree.
"""

import os
from importlib.metadata import distributions
from pathlib import Path

ENVIRONMENT = Path(__file__).parent.parent.parent / ".venv-peers"

HINT = "run `make setup-peers`"


def program(environment: Path, name: str) -> Path | None:
    """A program of the environment, if it is there."""
    found = environment / "bin" / name
    return found if os.access(found, os.X_OK) else None


def release(environment: Path, package: str) -> str:
    """The release of a package of the environment; empty if it is not there."""
    folders = [str(folder) for folder in environment.glob("lib/python*/site-packages")]
    # A search without a folder would answer with this interpreter's own packages.
    found = distributions(name=package, path=folders) if folders else ()
    return next((distribution.version for distribution in found), "")

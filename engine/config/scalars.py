"""What values of keys are made of: a secret, an address, a unit."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Secret:
    """Text that shows itself only when asked by name."""

    text: str

    def reveal(self) -> str:
        """The text itself: for the call that needs it, never for a message."""
        return self.text

    def __repr__(self) -> str:
        return "Secret(…)" if self.text else "Secret('')"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens. `host` has no brackets; port 0 means a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Where somebody on this machine finds what is served there."""
        is_everywhere = self.host in {"0.0.0.0", "::"}  # noqa: S104 - nothing is bound here
        return f"http://{Address('localhost', self.port) if is_everywhere else self}/"


@dataclass(frozen=True, slots=True)
class WorkersAddress:
    """Who reads snapshots: `count` processes of this machine (0: as many as it has CPUs).

    With a `scheduler` (`host:port`) the workers are those of its Dask cluster.
    """

    count: int = 0
    scheduler: str = ""

    def __str__(self) -> str:
        if self.scheduler:
            return f"dask://{self.scheduler}"
        return f"local:{self.count}" if self.count else "local"

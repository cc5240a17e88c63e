"""moto's server, and clients for whoever owns what is in it.

Strategy: the first question to each of moto's services imports it, which may take seconds on a busy
machine. The clients here wait for it; the engine's own give up after a few seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.config import Config
from botocore.session import Session
from moto.server import ThreadedMotoServer


@contextmanager
def moto_server() -> Iterator[str]:
    """The server's address. It takes any key."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def owner_of(service: str, url: str, region: str = "us-east-1") -> Any:
    """A patient client of one service. Any: its operations are not typed."""
    return Session().create_client(
        service,
        region,
        endpoint_url=url,
        aws_access_key_id="owner",
        aws_secret_access_key="owner",
        config=Config(read_timeout=120, retries={"total_max_attempts": 1}),
    )

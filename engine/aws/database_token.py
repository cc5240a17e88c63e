"""Tokens that take a password's place on RDS and Aurora ("IAM database authentication").

Strategy: AWS's credentials sign the connection's host, port and role; nothing is asked over the
network. A token opens connections for a quarter of an hour, so each connection gets its own.
"""

import asyncio
import re
from typing import Any, Final

from engine.aws import client

_RDS_HOST: Final = re.compile(r".+\.(?P<region>[a-z0-9-]+)\.rds\.amazonaws\.com(?:\.cn)?\.?")


async def database_token(host: str, port: int, user: str) -> str:
    """Implements `MakeToken` of the database's login. Raises SecretFailed.

    Cancellation leaves a thread that ends by itself within seconds.
    """
    return await asyncio.to_thread(_made, host, port, user)


def region_of(host: str) -> str:
    """The region that a host of RDS's names; empty for another one."""
    found = _RDS_HOST.fullmatch(host)
    return found["region"] if found else ""


def _made(host: str, port: int, user: str) -> str:
    region = client.region_or_default(region_of(host))
    try:
        service: Any = client.client("rds", region)
        token = service.generate_db_auth_token(
            DBHostname=host, Port=port, DBUsername=user, Region=region
        )
    except client.ERRORS as error:
        client.forget()
        raise client.failure(error, f"signing a token for {host}:{port}") from error
    return str(token)

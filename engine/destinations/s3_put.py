"""A PUT without most of what the client library does between its parameters and the socket.

Strategy: the library prepares the request (parameters, endpoint, region) and asks its `before-call`
handlers whether one of them has the answer. This one has. It signs with botocore's signer and sends
through the library's own HTTP session. Any answer but a plain success is read by the library's
parser. What is left out serves others: requests that handlers may change, retries, and the reading
of fields that nobody asks for. Where the endpoint wants another signature than S3's usual one, the
library goes on by itself.

Invariant: one request is sent at most, by the same session as all others, with the credentials that
the chain gives at this moment.
"""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiobotocore.parsers import create_parser
from botocore.auth import (  # type: ignore[attr-defined]  # One of them is not in the stubs.
    SIGNED_HEADERS_BLACKLIST,
    S3SigV4Auth,
    _host_from_url,
)

from engine.destinations.s3_body import SlicedBody

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials

# What the endpoint rules call the usual signature.
_SIGNATURES: Final = frozenset({"v4", "s3v4"})


class Credentials(Protocol):
    """Whoever knows the credentials of this moment."""

    def get_frozen_credentials(self) -> "Awaitable[ReadOnlyCredentials]":
        """What to sign with."""
        ...


class PutSender:
    """Answers `before-call.s3.PutObject` for one client."""

    def __init__(self, client: Any, credentials: Credentials) -> None:
        # aiobotocore has no public name for it. If a later release renames it, `connect` fails at
        # once.
        self._http = client._endpoint.http_session  # noqa: SLF001
        self._events = client.meta.events
        self._credentials = credentials
        self._parser = create_parser("rest-xml")

    async def answer(
        self, *, model: Any, params: Mapping[str, Any], context: dict[str, Any], **_: Any
    ) -> tuple[Any, dict[str, Any]] | None:
        """Send the request: its response and what is in it, or None where the library shall.

        Raises what the HTTP session raises, and what finding credentials does. Cancellation closes
        the request's connection; the request may have been applied.
        """
        signing = context.get("signing", {})
        if context.get("auth_type") not in _SIGNATURES or signing.keys() != {
            "region",
            "signing_name",
            "disableDoubleEncoding",
        }:
            return None
        request = Request(
            method=params["method"],
            url=params["url"],
            headers=dict(params["headers"]),
            body=params["body"],
            context=context,
        )
        credentials = await self._credentials.get_frozen_credentials()
        sign(request, credentials, signing["signing_name"], signing["region"])
        request.body = SlicedBody(memoryview(request.body))
        response = await self._http.send(request)
        content = await response.content
        if response.status_code == 200 and not content:
            return response, {}
        return response, await self._parsed(model, response, content)

    async def _parsed(self, model: Any, response: Any, content: bytes) -> dict[str, Any]:
        """What the library makes of an answer, an error within a success included."""
        answer = {
            "headers": response.headers,
            "status_code": response.status_code,
            "body": content,
            "context": {"operation_name": model.name},
        }
        changes: dict[str, Any] = {}
        await self._events.emit(
            f"before-parse.s3.{model.name}",
            operation_model=model,
            response_dict=answer,
            customized_response_dict=changes,
        )
        response.status_code = answer["status_code"]
        parsed: dict[str, Any] = await self._parser.parse(answer, model.output_shape)
        return parsed | changes


def sign(request: "Request", credentials: "ReadOnlyCredentials", name: str, region: str) -> None:
    """Add the headers that sign the others, and the body where the client says so."""
    signed: Any = request  # Of the form that the signer asks for, not of the type.
    _Signer(credentials, name, region).add_auth(signed)


@dataclass(slots=True)
class Request:
    """What botocore's signer and aiobotocore's session know of a request.

    Botocore's own keeps its headers in an e-mail message.
    """

    method: str
    url: str
    headers: dict[str, str]
    body: Any
    context: dict[str, Any]
    params: None = None
    stream_output: bool = False
    signed: dict[str, str] | None = None


class _Signer(S3SigV4Auth):
    """Botocore's signer for headers in a dict, each there once and sorted once."""

    def headers_to_sign(self, request: Any) -> dict[str, str]:  # type: ignore[override]
        """Their lower-case names and values, in order."""
        if request.signed is None:
            named = {name.lower(): value for name, value in request.headers.items()}
            named["host"] = _host_from_url(request.url)
            request.signed = {
                name: named[name] for name in sorted(named.keys() - set(SIGNED_HEADERS_BLACKLIST))
            }
        signed: dict[str, str] = request.signed
        return signed

    def canonical_headers(self, headers_to_sign: Mapping[str, str]) -> str:  # type: ignore[override]
        """A line for each."""
        lines = (f"{name}:{' '.join(text.split())}" for name, text in headers_to_sign.items())
        return "\n".join(lines)

"""The S3 client: with `s3_put` the only module that knows aiobotocore and botocore.

Importing it costs 0.1 to 0.3 s: import it late.

Strategy: one request, one attempt. The client library sends requests again in four places: in its
retry handlers, in its region redirector, and twice in aiohttp below it (on a connection that was
kept alive, and on a redirect). Each of them would hide that an answer was lost, so all are off.
`ask` turns whatever the library raises into one `Failure`.

Credentials come from AWS's default chain and stay there. Each request is signed with what the
chain's own provider says at that moment, never with a copy. So a rotation by the container agent,
IMDS or STS is seen before the credentials expire.
"""

import asyncio
import functools
import gzip
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar
from urllib.parse import urlsplit

import aiobotocore
import aiohttp
import orjson
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioDeferredRefreshableCredentials,
)
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import exceptions
from botocore.loaders import JSONFileLoader, Loader
from botocore.parsers import ResponseParserError

from engine import __version__
from engine.destinations.s3_body import SlicedBody
from engine.destinations.s3_errors import ClientUnusable, Failure
from engine.destinations.s3_put import PutSender
from engine.destinations.s3_settings import S3Settings

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials
    from types_aiobotocore_s3.client import S3Client

_P = ParamSpec("_P")
_T = TypeVar("_T")

ENDPOINT_PARAMETERS_UNUSED: Final = ("Key", "Prefix", "CopySource")

# What the library raises before or instead of an answer, and may not raise at the next attempt.
# Every other error of its own is a missing or wrong setting.
_TRANSPORT_ERRORS: Final = (
    exceptions.HTTPClientError,
    exceptions.ConnectionError,
    exceptions.CredentialRetrievalError,
    exceptions.MetadataRetrievalError,
    exceptions.TokenRetrievalError,
    exceptions.SSOError,
    exceptions.IncompleteReadError,
    exceptions.FlexibleChecksumError,
)


# Credentials to assume a role with could not be had: that is not about the role.
_SOURCE_ERRORS: Final = (exceptions.CredentialRetrievalError, exceptions.MetadataRetrievalError)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether the library says what no request will: credentials that were not renewed early.

    Where they had to be renewed, the request that waited for them fails, and says why.
    """
    return "mandatory" not in record.getMessage()


logging.getLogger("aiobotocore.credentials").addFilter(_is_news)

# Whether this task waits for the credentials of a role, so that an error is told of STS.
_asking_sts: ContextVar[bool] = ContextVar("_asking_sts", default=False)
_IDENTITY_SECONDS: Final = 10.0
_ROLE_OPERATION: Final = "AssumeRole"


class S3Connection:
    """A client and its pool of connections. Made by `connect`."""

    def __init__(self, client: "S3Client", credentials: "_ChainCredentials") -> None:
        self.client = client
        self._credentials = credentials

    async def ask(
        self,
        seconds: float,
        call: Callable[_P, Awaitable[_T]],
        *args: _P.args,
        **parameters: _P.kwargs,
    ) -> _T | Failure:
        """What `call` answers within `seconds`, or why there is no answer.

        Cancellation closes the request's connection; the request may have been applied.
        """
        asked = _asking_sts.set(False)
        try:
            async with asyncio.timeout(seconds):
                return await call(*args, **parameters)
        except (
            exceptions.ClientError,
            exceptions.BotoCoreError,
            ResponseParserError,
            aiohttp.ClientError,
            OSError,  # TimeoutError is one.
        ) as error:
            is_role = _asking_sts.get() and not isinstance(error, _SOURCE_ERRORS)
            failure = _failure(error, _ROLE_OPERATION if is_role else getattr(call, "__name__", ""))
            if failure.is_expired:
                self._credentials.forget()
            return failure
        finally:
            _asking_sts.reset(asked)

    async def identity(self) -> str | Failure:
        """The ARN that AWS's STS knows the process by, before any role is assumed.

        Cancellation changes nothing.
        """
        return await self.ask(_IDENTITY_SECONDS, self._credentials.identity)

    async def read(self, **parameters: Any) -> tuple[dict[str, str], bytes]:
        """An object's metadata and whole body, its checksum compared where the store keeps one.

        Cancellation closes the request's connection and changes nothing in the bucket.
        """
        response = await self.client.get_object(**parameters, ChecksumMode="ENABLED")
        body = response["Body"]
        # Entering gives aiohttp's response, whose `read` compares nothing.
        async with body:
            return dict(response["Metadata"]), await body.read()

    async def read_tail(self, **parameters: Any) -> tuple[int, dict[str, str], bytes]:
        """Size and metadata of an object, and the bytes of the range that is asked for.

        Cancellation closes the request's connection and changes nothing in the bucket.
        """
        response = await self.client.get_object(**parameters)
        body = response["Body"]
        async with body:
            last = await body.read()
        _, _, size_text = response.get("ContentRange", "").rpartition("/")
        # A store that gives all of a short object need not say which part it is.
        size = int(size_text) if size_text.isdecimal() else response["ContentLength"]
        return size, dict(response["Metadata"]), last


@asynccontextmanager
async def connect(settings: S3Settings) -> AsyncIterator[S3Connection]:
    """A connection for `settings`. Nothing is sent yet, not even for credentials.

    Raises ClientUnusable where the library cannot use the settings, or those of its own files.
    Leaving the block, also by cancellation, closes every connection of the pool.
    """
    region = settings.region or os.environ.get("AWS_REGION")
    if region is None and settings.endpoint_url:
        region = (
            "us-east-1"  # Stores that only resemble S3 have no regions, but a signature names one.
        )
    session = _session()
    credentials = _ChainCredentials(settings, region)
    session.register_component("credential_provider", credentials)
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(
                session.create_client(
                    "s3",
                    region_name=region,
                    endpoint_url=settings.endpoint_url,
                    verify=_verification(settings),
                    config=_client_configuration(settings),
                )
            )
        except exceptions.BotoCoreError as error:
            raise ClientUnusable(_failure(error, "")) from error
        put: Any = PutSender(client, credentials).answer  # A handler may answer, whatever its type.
        client.meta.events.register("before-call.s3.PutObject", put)
        client.meta.events.register("before-send.s3", _slice_body)
        client.meta.events.register_last("before-parameter-build.s3", _forbid_redirect)
        yield S3Connection(client, credentials)


def _verification(settings: S3Settings) -> bool | None:
    # Certificates cost 20 ms to read: not for a connection that has none.
    return False if urlsplit(settings.endpoint_url or "https:").scheme == "http" else None


def _session() -> AioSession:
    """A session of its own. Only the models are shared: they take a third of a second to read."""
    session = AioSession()
    session.register_component("data_loader", shared_models())
    return session


@functools.cache
def shared_models() -> Loader:
    """The models' reader, and what it has read."""
    loader = _Models(file_loader=_ModelFiles())
    # botocore caches where to send a request, by the set of parameters. S3's rules ask for none of
    # these three. With them, every key is a new set, and working it out is a quarter of what a
    # small PUT costs.
    parameters = loader.load_service_model("s3", "endpoint-rule-set-1")["parameters"]
    for name in ENDPOINT_PARAMETERS_UNUSED:
        parameters.pop(name, None)
    return loader


class _Models(Loader):
    """botocore's models, without a walk through the folders of 400 services for each of ours."""

    def list_available_services(  # type: ignore[override]  # It is only asked and listed.
        self, type_name: str
    ) -> "_Services":
        """The services that have a model of this type."""
        return _Services(self, type_name)


class _Services:
    """Services with a model of one type, looked for when they are asked for."""

    def __init__(self, loader: Loader, type_name: str) -> None:
        self._loader = loader
        self._type_name = type_name

    def __contains__(self, name: str) -> bool:
        try:
            return bool(self._loader.list_api_versions(name, self._type_name))
        except exceptions.DataNotFoundError:
            return False

    def __iter__(self) -> Iterator[str]:
        """All of them: what an error's text lists."""
        return iter(Loader.list_available_services(self._loader, self._type_name))


class _ModelFiles(JSONFileLoader):
    """botocore's reader of models with a parser that takes a quarter of the time.

    Its own makes an OrderedDict of every object; a dict keeps the order as well.
    """

    def load_file(self, file_path: str) -> Any:
        """The file's content, whatever botocore packed it in; None where there is no file."""
        for suffix, open_file in ((".json", open), (".json.gz", gzip.open)):
            try:
                with open_file(file_path + suffix, "rb") as file:
                    return orjson.loads(file.read())
            except FileNotFoundError:
                continue
        return super().load_file(file_path)


def read_models() -> None:
    """Read the models that a client is made of, a quarter of a second's work, and keep them."""
    for name in ("service-2", "endpoint-rule-set-1"):
        shared_models().load_service_model("s3", name)
    for name in ("endpoints", "partitions"):
        shared_models().load_data(name)


def _client_configuration(settings: S3Settings) -> AioConfig:
    return AioConfig(
        http_session_cls=_SingleAttemptSession,
        connect_timeout=settings.connect_seconds,
        read_timeout=settings.silence_seconds,
        max_pool_connections=settings.connection_count_max,
        # Only a caller that can tell an applied request from a lost one may repeat it.
        retries={"total_max_attempts": 1, "mode": "standard"},
        # Every body carries a CRC32 of ours already.
        request_checksum_calculation="when_required",
        # Ours are typed; the check walks every parameter of every request.
        parameter_validation=False,
        # It is given in full, because the library puts its own together anew for each request.
        user_agent=f"tailrace/{__version__} aiobotocore/{aiobotocore.__version__}",
        s3={
            "addressing_style": "path" if settings.endpoint_url else "auto",
            # Over TLS nobody can change the body, and the CRC32 in the signed headers covers
            # accidents. Hashing the body once more would cost 0.7 ms a MiB.
            "payload_signing_enabled": _is_wire_exposed(settings.endpoint_url),
        },
    )


def _is_wire_exposed(endpoint_url: str | None) -> bool:
    """Whether somebody between here and the store could change a body: neither TLS nor loopback."""
    parts = urlsplit(endpoint_url or "https:")
    return parts.scheme != "https" and parts.hostname not in {"127.0.0.1", "::1", "localhost"}


class _ChainCredentials:
    """AWS's default chain, and the role to assume on top of it, asked at each signature.

    It stands where botocore expects both the chain (`load_credentials`) and what the chain finds
    (`get_frozen_credentials`). The providers renew credentials in time by themselves. `forget` is
    for a store that says they have expired already. That happens to static ones from a file, or
    with a wrong clock. The chain is then walked anew.
    """

    method = "tailrace-chain"

    def __init__(self, settings: S3Settings, region: str | None) -> None:
        self._settings = settings
        self._region = region
        self._current: Any = None  # One of botocore's credential classes; they share no typed base.
        self._was_found = False
        self._lock = asyncio.Lock()

    def forget(self) -> None:
        self._current = None

    async def load_credentials(self) -> "_ChainCredentials":
        return self

    async def get_account_id(self) -> None:
        """No account: S3's endpoints do not depend on one."""

    def get_deferred_property(self, _name: str) -> Callable[[], None]:
        """Nothing: what endpoints of other services are made of."""
        return lambda: None

    async def identity(self) -> str:
        """The caller's ARN. Raises what the client library does."""
        session = _session()
        source = await _found(session)
        keys = await source.get_frozen_credentials()
        context = session.create_client(
            "sts",
            region_name=self._region or "us-east-1",
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            aws_session_token=keys.token,
            config=_sts_configuration(),
        )
        async with context as sts:
            answer = await sts.get_caller_identity()
        return str(answer["Arn"])

    async def get_frozen_credentials(self) -> "ReadOnlyCredentials":
        async with self._lock:
            if self._current is None:
                self._current = await self._resolved()
            current = self._current
        # Whatever goes wrong from here to the end is about STS, a time limit included.
        _asking_sts.set(self._settings.role_arn is not None)
        try:
            frozen: ReadOnlyCredentials = await current.get_frozen_credentials()
        except (RuntimeError, ValueError) as error:
            # botocore raises the first where credentials were renewed and are expired all the same,
            # because their provider lags behind. For the second see `_found`.
            raise exceptions.CredentialRetrievalError(
                provider=current.method, error_msg=str(error)
            ) from error
        _asking_sts.set(False)
        return frozen

    async def _resolved(self) -> Any:
        """As `_resolve`. What the chain found once it may find again: then it is asked again."""
        try:
            found = await self._resolve()
        except exceptions.BotoCoreError as error:
            if not self._was_found:
                raise
            raise exceptions.CredentialRetrievalError(
                provider="default chain", error_msg=f"it found some before: {error}"
            ) from error
        self._was_found = True
        return found

    async def _resolve(self) -> Any:
        session = _session()
        source = await _found(session)
        if self._settings.role_arn is None:
            return source
        extra = {"RoleSessionName": "tailrace", "DurationSeconds": self._settings.role_seconds}
        if self._settings.external_id is not None:
            extra["ExternalId"] = self._settings.external_id

        def sts_client(_service: str, **keys: Any) -> Any:
            return session.create_client(
                "sts", region_name=self._region, config=_sts_configuration(), **keys
            )

        fetcher = AioAssumeRoleCredentialFetcher(
            client_creator=sts_client,
            source_credentials=source,
            role_arn=self._settings.role_arn,
            extra_args=extra,
        )
        return AioDeferredRefreshableCredentials(
            method="assume-role", refresh_using=fetcher.fetch_credentials
        )


async def _found(session: AioSession) -> Any:
    """What AWS's default chain finds. Raises the client library's errors, and no other."""
    try:
        source = await session.get_credentials()
    except ValueError as error:
        # What it raises for a token that cannot be sent to the container's agent (its file ends in
        # a line break), and for an answer of the agent's that is no JSON.
        raise exceptions.CredentialRetrievalError(
            provider="container-role", error_msg=str(error)
        ) from error
    if source is None:
        raise exceptions.NoCredentialsError
    return source


def _sts_configuration() -> AioConfig:
    """Asking STS twice does no harm. Twice in vain takes less than a request may."""
    return AioConfig(
        connect_timeout=5,
        read_timeout=6,
        retries={"total_max_attempts": 2, "mode": "standard"},
    )


class _SingleAttemptSession(AIOHTTPSession):
    """aiobotocore's HTTP layer, minus what aiohttp does by itself."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)  # type: ignore[misc]  # Not in the stubs.
        # aiohttp sends a PUT again when a connection that was kept alive breaks. The second sending
        # is then answered with 412 for the object that the first one made. aiohttp has no public
        # switch for that.
        session._retry_connection = False  # noqa: SLF001 - a test counts the requests.
        return _NoRedirects(session)


class _NoRedirects:
    """A session of aiohttp that returns redirects as answers: a signed request has one address."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, **parameters: Any) -> aiohttp.ClientResponse:
        return await self._session.request(method, allow_redirects=False, **parameters)


def _slice_body(request: Any, **_: Any) -> None:
    if isinstance(request.body, bytes | bytearray | memoryview):
        request.body = SlicedBody(memoryview(request.body))


def _forbid_redirect(context: dict[str, Any], **_: Any) -> None:
    """Keep botocore from following a bucket to its region.

    A wrong region is an error that names it.
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


def _failure(error: Exception, operation: str) -> Failure:
    if isinstance(error, exceptions.ClientError):
        return _answered_failure(error)
    is_transport = not isinstance(error, exceptions.BotoCoreError) or isinstance(
        error, _TRANSPORT_ERRORS
    )
    return Failure(
        operation=operation,
        code=type(error).__name__,
        status=0,
        text=str(error),
        cause=error,
        is_local=not is_transport,
    )


def _answered_failure(error: exceptions.ClientError) -> Failure:
    details: dict[str, Any] = dict(error.response.get("Error", {}))
    metadata: dict[str, Any] = dict(error.response.get("ResponseMetadata", {}))
    headers = metadata.get("HTTPHeaders", {})
    return Failure(
        operation=error.operation_name,
        code=str(details.get("Code", "")),
        status=int(metadata.get("HTTPStatusCode", 0)),
        text=str(details.get("Message", "")),
        cause=error,
        bucket_region=str(details.get("Region", "") or headers.get("x-amz-bucket-region", "")),
    )

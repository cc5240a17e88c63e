"""What a start leaves out is left out, and nothing else is changed by it."""

import json
import os
import subprocess
import sys

import pytest
from botocore.exceptions import UnknownServiceError
from botocore.loaders import create_loader

from engine.destinations.s3_connection import ENDPOINT_PARAMETERS_UNUSED, shared_models

LEAN = "from engine.cli.startup import lean_imports\nwith lean_imports():\n"
IMPORT = LEAN + "    import engine.cli.process\n"


def python(code: str, **variables: str) -> str:
    """What another process prints that runs `code`."""
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.strip()


def test_a_start_reads_no_certificates_that_nobody_uses() -> None:
    code = (
        "from aiohttp.connector import _SSL_CONTEXT_VERIFIED as context\n"
        "print(context.cert_store_stats()['x509'], context.verify_mode.name)"
    )

    assert python(IMPORT + code) == "0 CERT_REQUIRED"


def test_a_start_loads_nothing_that_draws_and_no_resources() -> None:
    code = (
        "import sys, engine.destinations.s3_connection\n"
        "print(sorted({'aioboto3', 'boto3', 'rich', 's3transfer'} & set(sys.modules)))"
    )

    assert python(IMPORT + code) == "[]"


@pytest.mark.parametrize("file", ["", "/elsewhere.pem"])
def test_after_the_imports_all_is_as_before(file: str) -> None:
    code = (
        "    import os, structlog\n"
        "    assert os.environ['SSL_CERT_FILE'] == os.devnull\n"
        "import rich.console\n"
        "print(os.environ['SSL_CERT_FILE'])"
    )

    assert python(LEAN + code, SSL_CERT_FILE=file) == file


def test_a_variable_that_was_not_set_is_not_set_afterwards() -> None:
    code = "import os\nos.environ.pop('SSL_CERT_FILE', None)\n" + LEAN

    assert python(code + "    pass\nprint('SSL_CERT_FILE' in os.environ)") == "False"


def test_a_failing_import_restores_all_the_same() -> None:
    code = (
        "import sys\ntry:\n    with lean_imports():\n        import rich\n"
        "except ImportError:\n    print('rich' in sys.modules)"
    )

    assert python("from engine.cli.startup import lean_imports\n" + code) == "False"


def test_garbage_is_collected_once_the_command_line_is_imported() -> None:
    assert python("import gc, engine.__main__\nprint(gc.isenabled())") == "True"


def test_nobody_reads_the_page_before_somebody_asks_for_it() -> None:
    code = (
        "import sys\nfrom prometheus_client import CollectorRegistry\n"
        "from engine.operate.http_server import HttpServer\n"
        "HttpServer(None, lambda: None, CollectorRegistry())\n"
        "print('importlib.readers' in sys.modules)"
    )

    assert python(code) == "False"


def test_the_models_are_those_that_botocore_reads() -> None:
    theirs = create_loader()

    # A new one: clients change what they are made of.
    ours = type(shared_models())(file_loader=shared_models().file_loader)

    for name in ("service-2", "endpoint-rule-set-1"):
        assert ours.load_service_model("s3", name) == theirs.load_service_model("s3", name)
    assert ours.load_data("endpoints") == theirs.load_data("endpoints")


def test_no_rule_asks_for_the_parameters_that_are_left_out() -> None:
    ruleset = create_loader().load_service_model("s3", "endpoint-rule-set-1")
    rules = json.dumps(ruleset["rules"])

    assert set(ENDPOINT_PARAMETERS_UNUSED) < set(ruleset["parameters"])
    for name in ENDPOINT_PARAMETERS_UNUSED:
        assert f'"{name}"' not in rules
        assert f"{{{name}" not in rules
    assert "{Bucket" in rules


def test_an_unknown_service_is_told_with_those_that_are_known() -> None:
    with pytest.raises(UnknownServiceError, match=r"s4.*sts"):
        shared_models().load_service_model("s4", "service-2")
    with pytest.raises(UnknownServiceError):
        shared_models().load_service_model("s3", "no-such-type-1")

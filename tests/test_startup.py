"""What a start leaves out is left out, and nothing else is changed by it."""

import os
import subprocess
import sys

import pytest
from botocore.exceptions import UnknownServiceError
from botocore.loaders import create_loader

from engine.destinations.s3_connection import read_models, shared_models

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


def test_the_models_are_those_that_botocore_reads() -> None:
    read_models()
    theirs = create_loader()

    for name in ("service-2", "endpoint-rule-set-1"):
        assert shared_models().load_service_model("s3", name) == theirs.load_service_model(
            "s3", name
        )
    assert shared_models().load_data("endpoints") == theirs.load_data("endpoints")


def test_an_unknown_service_is_told_with_those_that_are_known() -> None:
    with pytest.raises(UnknownServiceError, match=r"s4.*sts"):
        shared_models().load_service_model("s4", "service-2")
    with pytest.raises(UnknownServiceError):
        shared_models().load_service_model("s3", "no-such-type-1")

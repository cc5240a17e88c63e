"""What `make audit` says of the locked packages: known vulnerabilities, and an SBOM."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import engine


def _script(name: str) -> ModuleType:
    file = Path(engine.__file__).parent.parent / ".ci" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit = _script("audit")
sbom = _script("sbom")


def _judged(answer: str, errors: str = "") -> Any:
    return audit.judge(answer, errors, lock="runtime.txt", service="osv")


def _answer(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages})


CLEAN = {"name": "orjson", "version": "3.13.0", "vulns": []}


def test_packages_without_a_known_vulnerability_are_counted() -> None:
    verdict = _judged(_answer(CLEAN, CLEAN))

    assert verdict.is_clean
    assert verdict.text == "2 packages of runtime.txt: osv knows no vulnerability."


def test_a_vulnerability_is_named_with_the_release_that_mends_it() -> None:
    known = [
        {"id": "PYSEC-1", "fix_versions": ["3.14.6"]},
        {"id": "PYSEC-2", "fix_versions": []},
    ]

    verdict = _judged(_answer(CLEAN, {"name": "aiohttp", "version": "3.14.5", "vulns": known}))

    assert not verdict.is_clean
    assert verdict.text.splitlines()[1:] == [
        "aiohttp 3.14.5: PYSEC-1, mended in 3.14.6",
        "aiohttp 3.14.5: PYSEC-2, mended in no release yet",
    ]


def test_a_service_that_cannot_be_reached_fails_by_name() -> None:
    verdict = _judged("", "Traceback\n  ...\nConnectionError: no such host\n")

    assert not verdict.is_clean
    assert "the service osv could not be asked" in verdict.text
    assert "ConnectionError: no such host" in verdict.text


def test_a_package_that_nobody_answered_for_is_not_clean() -> None:
    verdict = _judged(_answer(CLEAN, {"name": "uvloop", "skip_reason": "not found"}))

    assert not verdict.is_clean
    assert "Nothing is known of 1 of 2 packages" in verdict.text
    assert "did not answer for uvloop." in verdict.text


@pytest.mark.parametrize("answer", [_answer(), "no JSON"])
def test_no_answer_is_not_clean(answer: str) -> None:
    assert not _judged(answer).is_clean


def _component(name: str) -> dict[str, Any]:
    link = {"type": "distribution", "url": f"file:///home/somebody/{name}.whl"}
    return {
        "bom-ref": f"{name}==1",
        "externalReferences": [link],
        "name": name,
        "type": "library",
        "version": "1",
    }


LOCK = "aiohttp==1 \\\n    --hash=sha256:00\nattrs==1 \\\n    --hash=sha256:00\n"


def _environment() -> dict[str, Any]:
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"tools": {"components": [_component("cyclonedx-py")]}},
        "components": [_component(name) for name in ("tailrace", "AioHTTP", "attrs", "pip")],
        "dependencies": [
            {"ref": "tailrace==1", "dependsOn": ["AioHTTP==1"]},
            {"ref": "AioHTTP==1", "dependsOn": ["attrs==1", "pip==1"]},
            {"ref": "attrs==1"},
            {"ref": "pip==1"},
        ],
    }


def _made() -> dict[str, Any]:
    document: dict[str, Any] = sbom.of_tailrace(_environment(), sbom.locked_names(LOCK))
    return document


def test_the_sbom_holds_what_is_locked_and_no_more() -> None:
    document = _made()

    assert document["metadata"]["component"]["name"] == "tailrace"
    assert [component["name"] for component in document["components"]] == ["AioHTTP", "attrs"]
    assert document["dependencies"] == [
        {"ref": "tailrace==1", "dependsOn": ["AioHTTP==1"]},
        {"ref": "AioHTTP==1", "dependsOn": ["attrs==1"]},
        {"ref": "attrs==1", "dependsOn": []},
    ]


def test_the_sbom_names_no_address_and_is_valid() -> None:
    text = json.dumps(_made())

    assert text.replace("http://cyclonedx.org/", "").count("://") == 0
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None

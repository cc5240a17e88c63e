"""sbom.py ENVIRONMENT LOCK FOLDER: write an SBOM of Tailrace (CycloneDX) into FOLDER.

Strategy: cyclonedx-py reads an environment that holds the locked packages and the wheel (`make
install-runtime`), with licences and what depends on what. The lock says which packages are kept:
pip is none of them. Links are dropped: they say nothing that name and version do not, and one of
them is a folder of the building machine.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

_ROOT = "tailrace"


def of_tailrace(document: dict[str, Any], locked: set[str]) -> dict[str, Any]:
    """The SBOM of an environment as that of Tailrace: itself, and the locked packages."""
    components = {component["bom-ref"]: component for component in document["components"]}
    root = next(ref for ref, component in components.items() if component["name"] == _ROOT)
    kept = {root} | {
        ref
        for ref, component in components.items()
        if canonicalize_name(component["name"]) in locked
    }
    tools = [_without_links(tool) for tool in document["metadata"]["tools"]["components"]]
    return document | {
        "metadata": document["metadata"]
        | {
            "tools": {"components": tools},
            "component": _without_links(components.pop(root)) | {"type": "application"},
        },
        "components": [
            _without_links(component) for ref, component in components.items() if ref in kept
        ],
        "dependencies": [
            {"ref": entry["ref"], "dependsOn": sorted(kept & set(entry.get("dependsOn", [])))}
            for entry in document["dependencies"]
            if entry["ref"] in kept
        ],
    }


def locked_names(lock: str) -> set[str]:
    return {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}


def _without_links(component: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in component.items() if name != "externalReferences"}


def main(environment: str, lock: str, folder: str) -> None:
    read = subprocess.check_output(
        [
            Path(sys.prefix, "bin", "cyclonedx-py"),
            "environment",
            "--output-reproducible",
            environment,
        ]
    )
    document = of_tailrace(json.loads(read), locked_names(Path(lock).read_text()))
    version = document["metadata"]["component"]["version"]
    file = Path(folder) / f"{_ROOT}-{version}.cdx.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{file}: {_ROOT} {version} and {len(document['components'])} packages that it runs on")


if __name__ == "__main__":
    main(*sys.argv[1:])

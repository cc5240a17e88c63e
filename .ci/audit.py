"""audit.py LOCK SERVICE: ask a service which known vulnerabilities the packages of a lock have.

Strategy: pip-audit asks. It ends well where a service knows nothing of a package, and with a
traceback where it cannot be reached. Here both fail, by name: what nobody answered for is not
clean.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_NEXT = (
    "Try again where the service can be reached, or name another one: "
    "make audit AUDIT_SERVICE=pypi, or osv."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is printed, and whether every package was answered for and none is vulnerable."""

    text: str
    is_clean: bool


def judge(answer: str, errors: str, *, lock: str, service: str) -> Verdict:
    """Read what pip-audit wrote to stdout (JSON, or nothing) and to stderr."""
    try:
        packages = json.loads(answer)["dependencies"]
    except ValueError:
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        return Verdict(
            f"Nothing is known: the service {service} could not be asked. pip-audit says:\n{last}\n"
            + _NEXT,
            is_clean=False,
        )
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown or not packages:
        return Verdict(
            f"Nothing is known of {len(unknown)} of {len(packages)} packages of {lock}: "
            f"the service {service} did not answer for {', '.join(unknown) or 'any'}.\n" + _NEXT,
            is_clean=False,
        )
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no release yet'}"
        for package in packages
        for vulnerability in package["vulns"]
    ]
    if found:
        return Verdict("\n".join(["Known vulnerabilities:", *found]), is_clean=False)
    return Verdict(
        f"{len(packages)} packages of {lock}: {service} knows no vulnerability.", is_clean=True
    )


def main(lock: str, service: str) -> None:
    program = Path(sys.prefix, "bin", "pip-audit")
    options = ["--progress-spinner=off", "--disable-pip", "--require-hashes", "--format=json"]
    said = subprocess.run(
        [program, *options, f"--requirement={lock}", f"--vulnerability-service={service}"],
        capture_output=True,
        text=True,
        check=False,
    )
    verdict = judge(said.stdout, said.stderr, lock=lock, service=service)
    print(verdict.text, file=sys.stdout if verdict.is_clean else sys.stderr)
    sys.exit(0 if verdict.is_clean else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Which right was missing when a request was refused, and who has to grant it.

Strategy: AWS often says it itself ("User: … is not authorized to perform: … on resource: …"). Other
stores, and AWS towards strangers, say no more than that access is denied. Then the table of
`s3_rights` says what the request needs. The form of AWS's text: "Troubleshoot access denied error
messages" in its IAM user guide. This module is pure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.destinations.s3_rights import ASSUME, RIGHT_OF, Place

_SAID: Final = re.compile(
    r"(?:User: (?P<user>\S+) )?is not authorized to perform: (?P<right>[a-z0-9-]+:\w+)"
    r'(?: on (?:the )?resource: "?(?P<resource>[^"\s]+?)"?(?=\s|\)|$))?'
)
_DENY: Final = re.compile(r"with an explicit deny in an? ([\w -]+? (?:policy|boundary))")
_NOBODY: Final = re.compile(r"because no ([\w -]+? (?:policy|boundary)) allows")


@dataclass(frozen=True, slots=True)
class Said:
    """What AWS's own text says: who may not do what on what, and which policy is to blame."""

    user: str
    right: str
    resource: str
    denying: str
    silent: str


def said(text: str) -> Said | None:
    """What the text says of a refused right; None where it says nothing of the kind."""
    found = _SAID.search(text)
    if found is None:
        return None
    denying, silent = _DENY.search(text), _NOBODY.search(text)
    return Said(
        user=found["user"] or "",
        right=found["right"],
        resource=found["resource"] or "",
        denying=denying[1] if denying else "",
        silent=silent[1] if silent else "",
    )


def access_hint(text: str, operation: str, place: Place, configured: Sequence[str] = ()) -> str:
    """What to grant and where, after a request of that name was refused with that text.

    `configured` are the rights that the request needs besides its own, as it is configured.
    """
    told = said(text)
    if told is not None:
        return _told_hint(told, place)
    right = RIGHT_OF.get(operation)
    if right is None:
        return "grant the rights that `tailrace iam` prints"
    wanted = f"{right} on {place.resource_of(right)}"
    if configured:
        wanted += f", and, as it is configured, {', '.join(configured)}"
    return (
        f"grant {wanted}: in the role's policy and, where the bucket is another account's, in the "
        "bucket's too. `tailrace iam` prints them"
    )


def role_hint(text: str, role_arn: str, *, has_external_id: bool) -> str:
    """What keeps a role from being assumed. AWS says the same of all three."""
    told = said(text)
    who = told.user if told is not None and told.user else "the identity this process runs as"
    external = (
        "its condition on sts:ExternalId, if it has one, asks for what destination.external_id says"
        if has_external_id
        else "it asks for no sts:ExternalId, because destination.external_id is not set"
    )
    return (
        f"{who} needs {ASSUME} on {role_arn} in its own policy; the role's trust policy must name "
        f"that identity; and see that {external}. `tailrace iam` prints both policies"
    )


def _told_hint(told: Said, place: Place) -> str:
    is_key = told.right.startswith("kms:")
    # A key, or else more than one object: the next one would be refused as well.
    resource = (told.resource or "the KMS key") if is_key else place.resource_of(told.right)
    wanted = f"{told.right} on {resource}"
    if told.denying:
        return (
            f"a Deny in a {told.denying} forbids {wanted}: to grant it does not help, that "
            "statement has to let it pass"
        )
    where = f"in the {told.silent}" if told.silent else "in the role's policy"
    of_whom = f" of {told.user}" if told.user and told.silent == "identity-based policy" else ""
    if told.silent == "resource-based policy":
        where = "in the key's policy" if is_key else "in the bucket's policy"
    return f"grant {wanted} {where}{of_whom}. `tailrace iam` prints it"

"""Texts of refusals, AWS's own among them, and the right that is named for each."""

import pytest

from engine.destinations.s3_access import access_hint, role_hint, said
from engine.destinations.s3_rights import RIGHT_OF, Place

PLACE = Place("lake", "team/shop", "eu-west-1")
ROLE = "arn:aws:iam::444455556666:role/writer"
USER = "arn:aws:sts::111122223333:assumed-role/task/3f"
KEY = "arn:aws:kms:eu-west-1:111122223333:key/1"


def told(right: str, resource: str, why: str) -> str:
    return f"User: {USER} is not authorized to perform: {right} on resource: {resource} {why}"


@pytest.mark.parametrize("operation", sorted(RIGHT_OF))
def test_a_request_names_its_own_right_and_what_it_is_needed_on(operation: str) -> None:
    hint = access_hint("Access Denied", operation, PLACE)

    right = RIGHT_OF[operation]
    is_bucket = "Bucket" in right or right == "s3:GetLifecycleConfiguration"
    resource = "arn:aws:s3:::lake" if is_bucket else "arn:aws:s3:::lake/team/shop/*"
    assert hint.startswith(f"grant {right} on {resource}: ")


def test_what_the_store_says_itself_goes_before_the_table() -> None:
    text = told(
        "s3:PutObjectTagging",
        '"arn:aws:s3:::lake/team/shop/k"',
        "because no identity-based policy allows the s3:PutObjectTagging action",
    )

    hint = access_hint(text, "PutObject", PLACE, ["s3:PutObjectAcl"])

    assert hint.startswith(
        "grant s3:PutObjectTagging on arn:aws:s3:::lake/team/shop/* in the identity-based policy"
        f" of {USER}."
    )
    assert "PutObjectAcl" not in hint


def test_the_side_that_does_not_grant_is_named() -> None:
    text = told(
        "s3:ListBucket",
        '"arn:aws:s3:::lake"',
        "because no resource-based policy allows the s3:ListBucket action",
    )

    assert "grant s3:ListBucket on arn:aws:s3:::lake in the bucket's policy" in access_hint(
        text, "GetObject", PLACE
    )


def test_a_deny_is_told_from_a_right_that_is_missing() -> None:
    why = "with an explicit deny in a resource-based policy"
    text = told("s3:PutObject", '"arn:aws:s3:::lake/team/shop/k"', why)

    hint = access_hint(text, "PutObject", PLACE)

    assert hint.startswith("a Deny in a resource-based policy forbids s3:PutObject on")
    assert "grant s3" not in hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            told("kms:GenerateDataKey", KEY, "because no identity-based policy allows the action"),
            KEY,
        ),
        (
            f"(User: {USER} is not authorized to perform: kms:Decrypt on the resource meant)",
            "kms:Decrypt on the KMS key",
        ),
    ],
)
def test_a_missing_right_on_the_key_is_named_and_not_one_on_the_bucket(
    text: str, expected: str
) -> None:
    hint = access_hint(text, "PutObject", PLACE)

    assert expected in hint
    assert "s3:PutObject" not in hint


def test_a_text_that_says_nothing_of_rights_is_no_such_text() -> None:
    assert said("Access Denied") is None
    assert said("") is None


def test_three_sides_may_keep_a_role_from_being_assumed() -> None:
    text = f"User: {USER} is not authorized to perform: sts:AssumeRole on resource: {ROLE}"

    with_id = role_hint(text, ROLE, has_external_id=True)
    without = role_hint(text, ROLE, has_external_id=False)

    for hint in (with_id, without):
        assert hint.startswith(f"{USER} needs sts:AssumeRole on {ROLE} in its own policy")
        assert "trust policy must name" in hint
    assert "what destination.external_id says" in with_id
    assert "destination.external_id is not set" in without

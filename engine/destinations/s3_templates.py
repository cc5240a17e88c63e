"""CloudFormation templates that attach the printed policies, one for each place they go to.

Strategy: a template is JSON, which CloudFormation takes as it takes YAML. What the configuration
does not know is a parameter. A role's two documents, its policy and whom it trusts, make one role.

Forms: "AWS::IAM::RolePolicy", "AWS::IAM::Role" and "AWS::S3::BucketPolicy" in the template
reference. This module is pure.
"""

from collections.abc import Mapping, Sequence

from engine.destinations.s3_policies import EXTERNAL_ID_MARK, PRINCIPAL_MARK, Document, Wanted

Template = Mapping[str, object]


def template_of(document: Document, wanted: Wanted, all_documents: Sequence[Document]) -> Template:
    """The template that attaches `document`; empty where another one attaches it, or none can."""
    match document.kind:
        case "task-role":
            return _task_role(document, wanted)
        case "bucket-role":
            (trust,) = (each for each in all_documents if each.kind == "trust")
            return _role(document, trust, wanted)
        case "bucket":
            return _bucket(document, wanted)
        case "trust" | "key":
            return {}


def _task_role(document: Document, wanted: Wanted) -> Template:
    parameter: dict[str, object] = {"Type": "String", "Description": "The role's name."}
    if wanted.principal:
        parameter["Default"] = wanted.principal.rsplit("/", 1)[-1]
    properties = {
        "RoleName": {"Ref": "RoleName"},
        "PolicyName": f"tailrace-{wanted.who}",
        "PolicyDocument": document.policy,
    }
    return _template(
        document,
        {"RoleName": parameter},
        {"TailraceRolePolicy": {"Type": "AWS::IAM::RolePolicy", "Properties": properties}},
    )


def _role(document: Document, trust: Document, wanted: Wanted) -> Template:
    principal: dict[str, object] = {"Type": "String", "Description": "The task role's ARN."}
    if wanted.principal:
        principal["Default"] = wanted.principal
    parameters: dict[str, object] = {"TaskRoleArn": principal}
    if wanted.has_external_id:
        parameters["ExternalId"] = {
            "Type": "String",
            "NoEcho": True,
            "Description": "What destination.external_id says.",
        }
    path, _, name = wanted.role_arn.partition(":role")[2].rpartition("/")
    properties = {
        "RoleName": name,
        "Path": f"{path}/",
        "AssumeRolePolicyDocument": _with_parameters(trust.policy, wanted),
        "Policies": [{"PolicyName": f"tailrace-{wanted.who}", "PolicyDocument": document.policy}],
    }
    return _template(
        document,
        parameters,
        {"TailraceBucketRole": {"Type": "AWS::IAM::Role", "Properties": properties}},
    )


def _with_parameters(part: object, wanted: Wanted) -> object:
    """A part of a document, with parameters for what a human would fill in."""
    if isinstance(part, Mapping):
        return {name: _with_parameters(value, wanted) for name, value in part.items()}
    if isinstance(part, list):
        return [_with_parameters(value, wanted) for value in part]
    if part == EXTERNAL_ID_MARK:
        return {"Ref": "ExternalId"}
    if part in {PRINCIPAL_MARK, wanted.principal}:
        return {"Ref": "TaskRoleArn"}
    return part


def _bucket(document: Document, wanted: Wanted) -> Template:
    properties = {"Bucket": wanted.place.bucket, "PolicyDocument": document.policy}
    return _template(
        document,
        {},
        {"TailraceBucketPolicy": {"Type": "AWS::S3::BucketPolicy", "Properties": properties}},
    )


def _template(
    document: Document, parameters: Mapping[str, object], resources: Mapping[str, object]
) -> Template:
    template: dict[str, object] = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"{document.title}, for Tailrace.",
    }
    if parameters:
        template["Parameters"] = parameters
    return {**template, "Resources": resources}

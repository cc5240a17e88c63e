"""The rights that the database's login needs: on its secrets, their key, and the login itself.

Strategy: a configuration names a secret by its ARN or by its name. Of a name neither the region nor
the account is known, so a policy has a star there, unless somebody says the account. Forms:
"Actions, resources, and condition keys" of Secrets Manager, Systems Manager and RDS IAM
Authentication in AWS's service authorization reference.

This module is pure.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engine.config.secret_reference import SecretReference

GET_VALUE: Final = "secretsmanager:GetSecretValue"
GET_PARAMETER: Final = "ssm:GetParameter"
DECRYPT: Final = "kms:Decrypt"
CONNECT: Final = "rds-db:connect"

_ANY: Final = "*"

# Secrets Manager puts a hyphen and six characters of its own behind the name.
_SUFFIX: Final = "-??????"
_SUFFIXED: Final = re.compile(r".+-[A-Za-z0-9]{6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRights:
    """What a login takes from AWS.

    `key_arn` is the KMS key of the secrets; empty where AWS's own keys encrypt them. `user` is who
    logs in by IAM; empty where nobody does, a star where it is not known. `host_region` is the
    database's region, `account` the role's account; both empty where they are not known.
    """

    references: Sequence[SecretReference]
    key_arn: str = ""
    user: str = ""
    host_region: str = ""
    partition: str = "aws"
    account: str = ""

    @property
    def statements(self) -> tuple[Mapping[str, object], ...]:
        """The statements of the role that the engine runs as."""
        statements = [
            _allow(sid, action, resources)
            for sid, keeper, action in (
                ("TailraceSecrets", "secretsmanager", GET_VALUE),
                ("TailraceParameters", "ssm", GET_PARAMETER),
            )
            if (resources := self._resources(keeper))
        ]
        if self.key_arn and statements:
            statements.append(self._key_use())
        if self.user:
            # The database's resource id is in no configuration.
            region, account = self.host_region or _ANY, self.account or _ANY
            login = f"arn:{self.partition}:rds-db:{region}:{account}:dbuser:*/{self.user}"
            statements.append(_allow("TailraceLogin", CONNECT, [login]))
        return tuple(statements)

    def _resources(self, keeper: str) -> list[str]:
        kept = (each for each in self.references if each.keeper == keeper)
        return sorted({self._arn(each) for each in kept})

    def _arn(self, reference: SecretReference) -> str:
        name = reference.name
        place = f"arn:{self.partition}:{reference.keeper}:*:{self.account or _ANY}"
        if reference.keeper == "ssm":
            name = _unversioned(name)
            return name if reference.region else f"{place}:parameter/{name.lstrip('/')}"
        if reference.region:
            return name if _SUFFIXED.fullmatch(name) else f"{name}{_SUFFIX}"
        return f"{place}:secret:{name}{_SUFFIX}"

    def _key_use(self) -> dict[str, object]:
        _, partition, _, region, *_ = self.key_arn.split(":")
        domain = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
        keepers = sorted({each.keeper for each in self.references})
        services = [f"{keeper}.{region}.{domain}" for keeper in keepers]
        condition = {"StringEquals": {"kms:ViaService": services}}
        return {**_allow("TailraceSecretsKey", DECRYPT, [self.key_arn]), "Condition": condition}


def _unversioned(name: str) -> str:
    """The name of a parameter, or its ARN, without the version or the label that may follow it.

    A policy names a parameter, not one version of it.
    """
    begin, slash, last = name.rpartition("/")
    return f"{begin}{slash}{last.partition(':')[0]}"


def _allow(name: str, action: str, resources: Sequence[str]) -> dict[str, object]:
    return {"Sid": name, "Effect": "Allow", "Action": [action], "Resource": list(resources)}

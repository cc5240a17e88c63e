"""A bucket under policies: a proxy that judges each request as AWS would, before a real server.

It stands before any S3 server. moto's own judgement knows neither conditions nor a bucket's policy
across accounts, and no server knows `If-None-Match` as a condition.
"""

from collections.abc import Callable

from engine.servers.fault_proxy import Answer, Fault, HttpFaultProxy, Request
from policies import Asked, asked_by

Judge = Callable[[Asked], str]
"""Why something is refused; empty: it is not."""


class PolicedBucket(HttpFaultProxy):
    """The proxy. `judge` may be changed at any time, and `asked` is what was wanted so far.

    `is_terse`: a refusal says no more than "Access Denied", as S3 does to strangers. `key_arn` is
    the KMS key that all objects are encrypted with. `exists` says whether a key is there: without
    the right to list, a missing one is forbidden.
    """

    def __init__(self, upstream_port: int) -> None:
        super().__init__(upstream_port)
        self.judge: Judge = lambda _: ""
        self.exists: Callable[[str], bool] = lambda _: True
        self.is_terse = False
        self.is_secure = True
        self.key_arn = ""
        self.asked: list[Asked] = []
        self.refused: list[Asked] = []

    def fault_of(self, request: Request) -> Fault | None:
        """A refusal, where one is due; else what the rules say."""
        for asked in self._wanted(request):
            self.asked.append(asked)
            reason = self.judge(asked)
            if reason:
                self.refused.append(asked)
                return Answer(403, "AccessDenied", "Access Denied" if self.is_terse else reason)
        return super().fault_of(request)

    def _wanted(self, request: Request) -> list[Asked]:
        wanted = list(asked_by(request, is_secure=self.is_secure, key_arn=self.key_arn))
        if wanted[0].action == "s3:GetObject" and not self.exists(request.key):
            bucket = f"arn:aws:s3:::{request.bucket}"
            # S3 takes the key for the prefix that is listed.
            wanted.append(Asked("s3:ListBucket", bucket, {"s3:prefix": request.key}))
        return wanted

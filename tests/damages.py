"""Ways to break a bucket, each with the codes that `verify` must give for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.reader.verify.problem import Code

Broken = TypeVar("Broken")
"""What is broken: a bucket, and what its test knows of it."""


@dataclass(frozen=True)
class Damage(Generic[Broken]):
    """A way to break a bucket; the codes that it must give, and those more at full depth."""

    name: str
    apply: Callable[[Broken], None]
    light: set[Code]
    more: set[Code]


class Damages(list[Damage[Broken]]):
    """All of them, in order. Calling it gives a decorator that adds one."""

    def __call__(
        self, light: set[Code] | None = None, more: set[Code] | None = None
    ) -> Callable[[Callable[[Broken], None]], Callable[[Broken], None]]:
        def add(apply: Callable[[Broken], None]) -> Callable[[Broken], None]:
            self.append(Damage(apply.__name__, apply, light or set(), more or set()))
            return apply

        return add

"""Compiles what runs once a row; everything else about the build is declared in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup


def _compiled(name: str, suffix: str = ".pyx") -> Extension:
    # -O3 over the default -O2 costs nothing but build time.
    return Extension(name, [name.replace(".", "/") + suffix], extra_compile_args=["-O3"])


_NAMES = (
    "engine.lines.hashing",
    "engine.lines.text",
    "engine.lines.writer",
    "engine.reader.fold.keys",
    "engine.reader.fold.line",
    "engine.reader.fold.fold",
    "engine.sources.postgres.values",
    "engine.sources.postgres.tuples",
    "engine.sources.postgres.copy_rows",
    "engine.sources.postgres.frames",
)

extensions = cythonize(
    [_compiled(name) for name in _NAMES],
    compiler_directives={"language_level": "3"},
)
if os.environ.get("TAILRACE_BUILD_TESTS"):
    # What readers of rows are measured against in the tests: built as those are, and not shipped.
    extensions.append(_compiled("tests.rowcodec_reference", ".c"))

setup(ext_modules=extensions)

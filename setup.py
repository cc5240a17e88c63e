"""Compiles the row codec; everything else about the build is declared in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

# The codec runs once a row: -O3 over the default -O2 costs nothing but build time.
COMPILE_ARGS = ["-O3"]

extensions = cythonize(
    [Extension("engine.rowcodec", ["engine/rowcodec.pyx"], extra_compile_args=COMPILE_ARGS)],
    compiler_directives={"language_level": "3"},
)
if os.environ.get("TAILRACE_BUILD_TESTS"):
    # What the codec is measured against in the tests: built as the codec is, and not shipped.
    extensions.append(
        Extension(
            "tests.rowcodec_reference",
            ["tests/rowcodec_reference.c"],
            extra_compile_args=COMPILE_ARGS,
        )
    )

setup(ext_modules=extensions)

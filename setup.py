"""Compiles the row codec; everything else about the build is declared in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension(
                "engine.rowcodec",
                ["engine/rowcodec.pyx"],
                # The codec runs once a row: -O3 over the default -O2 costs nothing but build time.
                extra_compile_args=["-O3"],
            )
        ],
        compiler_directives={"language_level": "3"},
    ),
)

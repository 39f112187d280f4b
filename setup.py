"""Metadata is static and lives in pyproject.toml.

The package brings the sources of the CUDA C++ extension along. `FASTLNL_BUILD_EXT=1 pip install --no-build-isolation .`
builds it as well, and `FASTLNL_BUILD_EXT=require` fails where that is not possible. torch is imported only then.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
WISH = os.environ.get("FASTLNL_BUILD_EXT", "0")
if WISH not in ("0", "", "1", "require"):
    raise SystemExit(f"FASTLNL_BUILD_EXT is {WISH!r}; expected 1, require, or nothing")
BUILDS = WISH in ("1", "require")


class Build(build_py):
    def run(self):
        super().run()
        editable = getattr(self, "editable_mode", False)
        if not editable:
            package = Path(self.build_lib, "fastlnl")
            shutil.copytree(ROOT / "csrc", package / "csrc", dirs_exist_ok=True)
        if BUILDS:
            self.build_extension(None if editable else package / "_cuda")

    def build_extension(self, out):
        try:
            extension = runpy.run_path(str(ROOT / "fastlnl" / "extension.py"))
            path = extension["build"](os.environ.get("FASTLNL_CUDA_ARCHS", "80,90,100,120").split(","), out)
            print(f"fastlnl: built {path}", file=sys.stderr)
        except Exception as error:  # no torch, no nvcc, a failed compiler: each is a reason, told in one line
            if WISH == "require":
                raise SystemExit(f"FASTLNL_BUILD_EXT=require, but {error}") from error
            print(f"fastlnl: installed without the CUDA C++ extension: {error}", file=sys.stderr)


class WithExtension(Distribution):
    def has_ext_modules(self):
        return BUILDS  # a wheel with a library in it is of one platform


setup(cmdclass={"build_py": Build}, distclass=WithExtension)

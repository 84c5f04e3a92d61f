"""Puts luciola-compat.pth beside the module, where Python reads it at the start of a process."""

import os
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPth(build_py):
    """A build that has the .pth file too."""

    def run(self) -> None:
        """Build, and copy."""
        super().run()
        shutil.copy("luciola-compat.pth", os.path.join(self.build_lib, "luciola-compat.pth"))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:  # noqa: FBT001, FBT002 (setuptools')
        """What a build makes."""
        return [*super().get_outputs(include_bytecode), os.path.join(self.build_lib, "luciola-compat.pth")]


setup(cmdclass={"build_py": BuildWithPth})

"""What pyproject.toml cannot say: a C extension and a small program, both of which may fail to build.

Without a compiler or libfuse's headers layerfs works all the same, with more requests to the kernel. Without
the program, builds make the container of a RUN only when it is needed.
"""

import os
import shutil
import subprocess

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

GATE = "layerfs.build.gate"
"""A program without shared libraries: it is run in trees that have none."""


class Build(build_ext):
    """Builds extensions, and that program where they are."""

    def get_ext_filename(self, name: str) -> str:
        """Return the file of *name*; a program's has no suffix."""
        return name.replace(".", os.sep) if name in (GATE, "gate") else super().get_ext_filename(name)

    def build_extension(self, extension: Extension) -> None:
        """Build an extension, or the program."""
        if extension.name != GATE:
            super().build_extension(extension)
            return
        objects = self.compiler.compile(
            extension.sources, output_dir=self.build_temp, extra_postargs=extension.extra_compile_args
        )
        path = self.get_ext_fullpath(extension.name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.compiler.link_executable(
            objects, os.path.basename(path), output_dir=os.path.dirname(path), extra_preargs=["-static"]
        )


def pkg_config(option: str) -> list[str]:
    """Return what pkg-config says of libfuse, without the option letters; nothing where it is missing."""
    if not shutil.which("pkg-config"):
        return []
    words = subprocess.run(["pkg-config", option, "fuse3"], capture_output=True, text=True, check=False)
    return [word[2:] for word in words.stdout.split()]


PARTS = (
    "wire",
    "loop",
    "direct",
    "data",
    "answer",
    "known",
    "vouched",
    "entry",
    "blocking",
    "ahead",
    "times",
    "lost",
)

setup(
    ext_modules=[
        Extension(
            "layerfs.fuse._wire",
            [f"src/layerfs/fuse/_{part}.c" for part in PARTS],
            depends=["src/layerfs/fuse/_wire.h", "src/layerfs/fuse/_known.h"],
            include_dirs=pkg_config("--cflags-only-I"),
            library_dirs=pkg_config("--libs-only-L"),
            libraries=["fuse3"],
            extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
            optional=True,
        ),
        Extension(
            GATE,
            ["src/layerfs/build/gate.c"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            optional=True,
        ),
    ],
    cmdclass={"build_ext": Build},
)

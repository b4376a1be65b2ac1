"""The one thing that pyproject.toml cannot say: a C extension that may fail to build.

Without a compiler or libfuse's headers layerfs works all the same, with more requests to the kernel.
"""

import shutil
import subprocess

from setuptools import Extension, setup


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
    "answer",
    "known",
    "entry",
    "blocking",
    "ahead",
    "times",
    "unchanging",
    "lost",
)

setup(
    ext_modules=[
        Extension(
            "layerfs.fuse._wire",
            [f"src/layerfs/fuse/_{part}.c" for part in PARTS],
            depends=["src/layerfs/fuse/_wire.h"],
            include_dirs=pkg_config("--cflags-only-I"),
            library_dirs=pkg_config("--libs-only-L"),
            libraries=["fuse3"],
            extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"],
            optional=True,
        )
    ]
)

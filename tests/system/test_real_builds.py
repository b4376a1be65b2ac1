"""Programs that are made and run on a mount: a C build, a Python environment, a node package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Stack
from tests.system.programs import needs, run

pytestmark = pytest.mark.root
PARTS = 24
MAKEFILE = """\
objects := $(patsubst src/%.c,build/%.o,$(wildcard src/*.c))
build/total: $(objects) ; gcc -o $@ $^
build/%.o: src/%.c include/parts.h | build ; gcc -O1 -g -Iinclude -c -o $@ $<
build: ; mkdir -p $@
clean: ; rm -r build
"""


def write_sources(top: Path) -> None:
    """Write a program of many files, which prints the sum of 0..PARTS-1."""
    for name in ("src", "include"):
        (top / name).mkdir(parents=True)
    (top / "Makefile").write_text(MAKEFILE)
    (top / "include/parts.h").write_text("".join(f"int part{n}(void);\n" for n in range(PARTS)))
    for n in range(PARTS):
        (top / f"src/part{n}.c").write_text(f'#include "parts.h"\nint part{n}(void) {{ return {n}; }}\n')
    total = " + ".join(f"part{n}()" for n in range(PARTS))
    main = (
        f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )
    (top / "src/main.c").write_text(main)


@needs("make", "gcc")
def test_make(stack: Stack) -> None:
    """Sources in a lower layer are built in parallel; then only what has changed is built again."""
    write_sources(stack.bottom)
    for path in stack.bottom.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    mnt = stack.mount()

    def make(*arguments: str) -> int:
        return run("make", "-j4", *arguments, cwd=mnt).count(" -c -o ")

    assert make() == PARTS + 1
    assert run(mnt / "build/total") == f"{sum(range(PARTS))}\n"
    assert make() == 0
    stack.commit()
    (mnt / "src/part3.c").write_text('#include "parts.h"\nint part3(void) { return 1000; }\n')
    assert make() == 1
    assert run(mnt / "build/total") == f"{sum(range(PARTS)) - 3 + 1000}\n"
    os.utime(mnt / "include/parts.h")
    stack.remount()
    assert make() == PARTS + 1
    assert make() == 0
    make("clean")
    assert not (mnt / "build").exists()
    assert make() == PARTS + 1
    assert run("strip", "-o", mnt / "stripped", mnt / "build/total") == ""
    assert run(mnt / "stripped") == run(mnt / "build/total")
    assert sorted(os.listdir(stack.bottom)) == ["Makefile", "include", "src"]


def test_python(stack: Stack) -> None:
    """A virtual environment, its modules compiled, changed and compiled again."""
    mnt = stack.mount()
    run(sys.executable, "-m", "venv", "--without-pip", mnt / "venv")
    python = mnt / "venv/bin/python"
    plain = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": ""}

    def call(code: str) -> str:
        return run(python, "-c", code, variables=plain).rstrip("\n")

    assert call("import sys; print(sys.prefix)") == str(mnt / "venv")
    (site,) = (mnt / "venv/lib").glob("python3.*/site-packages")
    package = site / "greeter"
    package.mkdir()
    (package / "__init__.py").write_text("from greeter.words import WORD\n")
    (package / "words.py").write_text("WORD = 'hello'\n")
    show = "import greeter, greeter.words as w; print(greeter.WORD, w.__cached__)"
    word, cached = call(show).split()
    assert word == "hello"
    assert Path(cached).is_relative_to(mnt)
    compiled = Path(cached).stat()
    stack.commit()
    assert call("import greeter; print(greeter.WORD)") == "hello"
    assert Path(cached).stat().st_mtime_ns == compiled.st_mtime_ns, "it is not compiled again"
    (package / "words.py").write_text("WORD = 'good bye'\n")
    assert call("import greeter; print(greeter.WORD)") == "good bye"
    assert Path(cached).stat().st_ino != compiled.st_ino, "Python puts a new file in its place"
    stack.remount()
    assert call("import greeter; print(greeter.WORD)") == "good bye"
    run(python, "-m", "compileall", "-q", "-f", "-j", "4", site)
    run(sys.executable, "-m", "venv", "--without-pip", "--clear", "--copies", mnt / "venv")
    assert call("import sys; print(sys.prefix)") == str(mnt / "venv")
    assert not package.exists()


def write_package(top: Path, name: str, version: str, **more: object) -> None:
    """Write the beginnings of a node package."""
    top.mkdir(parents=True)
    (top / "package.json").write_text(json.dumps({"name": name, "version": version, **more}))


@needs("node")
def test_node(stack: Stack) -> None:
    """Packages are found through node_modules, a symbolic link and an executable."""
    modules = stack.bottom / "app/node_modules"
    write_package(
        modules / "greeter", "greeter", "1.0.0", exports={"require": "./c.cjs", "import": "./m.mjs"}
    )
    (modules / "greeter/c.cjs").write_text("module.exports = () => 'hello from ' + __dirname;\n")
    (modules / "greeter/m.mjs").write_text("export default () => 'hello, module';\n")
    write_package(stack.bottom / "linked", "linked", "1.0.0", main="index.js", bin={"linked": "index.js"})
    (stack.bottom / "linked/index.js").write_text("#!/usr/bin/env node\nconsole.log('linked', __filename);\n")
    (stack.bottom / "linked/index.js").chmod(0o755)
    mnt = stack.mount()
    modules = mnt / "app/node_modules"
    (modules / "linked").symlink_to("../../linked")
    (modules / ".bin").mkdir()
    (modules / ".bin/linked").symlink_to("../linked/index.js")
    (mnt / "app/main.cjs").write_text("console.log(require('greeter')());\n")
    (mnt / "app/main.mjs").write_text(
        "import greet from 'greeter';\n"
        "import { promises as fs, constants } from 'node:fs';\n"
        "console.log(greet());\n"
        "await fs.cp('node_modules/greeter', 'copy', { recursive: true, preserveTimestamps: true });\n"
        "await fs.copyFile('main.mjs', 'copy/main', constants.COPYFILE_FICLONE);\n"
        "await Promise.all([...Array(300).keys()].map(n => fs.writeFile(`copy/f${n}`, `${n}`)));\n"
        "await Promise.all([...Array(150).keys()].map(n => fs.rename(`copy/f${n}`, `copy/g${n}`)));\n"
        "await Promise.all([...Array(100).keys()].map(n => fs.rm(`copy/g${n}`)));\n"
        "console.log((await fs.readdir('copy')).length);\n"
        "await fs.rm('node_modules/greeter', { recursive: true });\n"
    )
    here = mnt / "app"
    assert run("node", "main.cjs", cwd=here) == f"hello from {modules}/greeter\n"
    assert run(modules / ".bin/linked", cwd=here) == f"linked {mnt}/linked/index.js\n"
    assert run("node", "main.mjs", cwd=here) == "hello, module\n204\n"
    stack.remount()
    assert len(os.listdir(here / "copy")) == 204
    assert (here / "copy/g120").read_text() == "120"
    failed = subprocess.run(["node", "main.cjs"], cwd=here, capture_output=True, timeout=50, check=False)
    assert b"Cannot find module 'greeter'" in failed.stderr


@needs("node", "npm")
def test_npm(stack: Stack) -> None:
    """npm packs a package, installs it from the archive and removes it, without a network."""
    write_package(stack.bottom / "one", "one", "1.0.0", main="index.js")
    (stack.bottom / "one/index.js").write_text("module.exports = 'one';\n")
    write_package(stack.bottom / "app", "app", "1.0.0")
    mnt = stack.mount()
    home = {"HOME": str(mnt), "npm_config_update_notifier": "false", "npm_config_offline": "true"}

    def npm(*arguments: str, cwd: Path) -> str:
        return run("npm", "--no-audit", "--no-fund", *arguments, cwd=cwd, variables=home)

    npm("pack", "--pack-destination", str(mnt), cwd=mnt / "one")
    npm("install", str(mnt / "one-1.0.0.tgz"), cwd=mnt / "app")
    assert run("node", "-p", "require('one')", cwd=mnt / "app") == "one\n"
    stack.commit()
    npm("ci", cwd=mnt / "app")
    assert run("node", "-p", "require('one')", cwd=stack.remount() / "app") == "one\n"
    npm("uninstall", "one", cwd=mnt / "app")
    assert not (mnt / "app/node_modules/one").exists()

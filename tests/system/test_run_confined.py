"""What a container's process may not do to its host: keys, namespaces, files that are devices."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.containers import IMAGE, Containers, containers
from tests.system.programs import needs

pytestmark = [pytest.mark.root, needs("cc", "unshare")]
PROBE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TRY(call, ...) do { \
    errno = 0; \
    if (syscall(SYS_##call, __VA_ARGS__) >= 0) errno = 0; \
    printf(#call " %s\n", errno ? strerrorname_np(errno) : "works"); \
} while (0)

static void clone_with(const char *what, unsigned long flags)
{
    long child = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (child == 0)
        _exit(0);
    printf("clone-%s %s\n", what, child > 0 ? "works" : strerrorname_np(errno));
}



int main(void)
{
    char data[64];
    struct { unsigned long long words[8]; } arguments = {{CLONE_NEWUSER, 0, 0, 0, SIGCHLD}};
    setvbuf(stdout, 0, _IONBF, 0);
    TRY(keyctl, 11, -4, data, sizeof data); /* read the user's keyring, which is the host's */
    TRY(add_key, "user", "layerfs-test", "x", 1, -3);
    TRY(request_key, "user", "layerfs-test", 0, -3);
    clone_with("plain", 0);
    clone_with("user", CLONE_NEWUSER);
    clone_with("pid", CLONE_NEWPID);
    TRY(clone3, &arguments, sizeof arguments);
    TRY(setns, -1, 0);
    TRY(mount, 0, 0, 0, 0, 0);
    TRY(pidfd_getfd, -1, 0, 0);
    TRY(socket, 1, 1, 0);
    TRY(socket, 38, 5, 0);
    TRY(socket, 40, 1, 0);
    TRY(socket, 1L << 32 | 38, 5, 0); /* of which the kernel sees 38 */
    TRY(unshare, CLONE_NEWUSER);
    return 0;
}
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An image to run that has the probe, for the whole module."""
    directory = tmp_path_factory.mktemp("confined")
    with containers(directory) as made:
        source = directory / "probe.c"
        source.write_text(PROBE)
        program = made.tree / "bin/probe"
        subprocess.run(["cc", "-static", "-o", program, source], check=True, timeout=60)
        made.layerfs.ok("import", made.tree, "probe:1")
        yield made


@pytest.mark.parametrize("user", ["root", "jane"])
def test_keys_and_new_namespaces_are_refused_as_by_docker(there: Containers, user: str) -> None:
    refused = ("keyctl", "add_key", "request_key")
    found = there.layerfs.ok("run", "--rm", "-u", user, "probe:1", "/bin/probe").splitlines()
    assert found == [
        *(f"{call} EPERM" for call in refused),
        "clone-plain works", "clone-user EPERM", "clone-pid EPERM",
        "clone3 ENOSYS", "setns EPERM", "mount EPERM", "pidfd_getfd EPERM",
        "socket works", "socket EPERM", "socket EPERM", "socket ENOSYS", "unshare EPERM",
    ]  # fmt: skip


def test_a_container_has_a_session_keyring_of_its_own(there: Containers) -> None:
    container = there.layerfs.ok("run", "-d", "--name", "keys", IMAGE, "sleep", "60")
    try:
        assert f"_ses.{container}" in Path("/proc/keys").read_text()
    finally:
        there.remove("keys")


def test_a_missing_seccomp_profile_is_a_warning_that_is_seen(there: Containers) -> None:
    hide = 'for d in /etc/containers /usr/share/containers; do mount -t tmpfs tmpfs $d; done; exec "$@"'
    words = ["unshare", "--mount", "--propagation=private", "sh", "-euc", hide, "sh", *there.layerfs.words]
    done = subprocess.run(
        [*words, "run", "--rm", IMAGE, "echo", "ran"],
        env=there.layerfs.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr.startswith("layerfs: warning: no seccomp profile is installed")
    assert done.stderr.count("\n") == 1


def test_a_device_as_the_list_of_users_is_not_opened(there: Containers) -> None:
    passwd = there.tree / "etc/passwd"
    text = passwd.read_bytes()
    passwd.unlink()
    try:
        os.mknod(passwd, stat.S_IFCHR | 0o666, os.makedev(240, 77))
        there.layerfs.ok("import", there.tree, "device:1")
    finally:
        passwd.unlink()
        passwd.write_bytes(text)
    assert there.layerfs.ok("run", "--rm", "-u", "7", "device:1", "id", "-u") == "7"

"""The options that say what a container is to be: those of docker's `run`, `create`, `update` and `exec`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_MANY = {
    "-a --attach": ("STREAM", "Attach to stdin, stdout or stderr alone."),
    "-e --env": ("NAME[=VALUE]", "Set a variable; a name alone takes the value that it has here."),
    "--env-file": ("FILE", "Set the variables in FILE, a line NAME=VALUE each."),
    "-v --volume": ("[SOURCE:]DEST[:MODE]", "Show the host's path or the volume SOURCE at DEST."),
    "--mount": ("FIELD=VALUE,...", "Mount type=bind|volume|tmpfs, with source= and target=."),
    "--tmpfs": ("DEST[:OPTIONS]", "Mount an empty directory in memory at DEST."),
    "--volumes-from": ("CONTAINER[:ro]", "Mount what another container has mounted."),
    "-l --label": ("NAME[=VALUE]", "Set a label."),
    "--label-file": ("FILE", "Set the labels in FILE, a line NAME=VALUE each."),
    "--annotation": ("NAME=VALUE", "Give the runtime an annotation."),
    "-p --publish": ("[[IP:]PORT:]PORT[/udp]", "Let a port of the host lead to one of the container."),
    "--expose": ("PORT[/udp]", "Say that the container serves a port."),
    "--network --net": ("NETWORK", "host (the default), none, container:NAME, or a network's name."),
    "--network-alias --net-alias": ("NAME", "Be found in the network by this name too."),
    "--link-local-ip": ("ADDRESS", "Have one more address of the link."),
    "--link": ("CONTAINER[:ALIAS]", "Know another container by a name."),
    "--add-host": ("NAME:ADDRESS", "Know the address of a host."),
    "--dns": ("ADDRESS", "Ask this name server."),
    "--dns-search": ("DOMAIN", "Look names up in this domain."),
    "--dns-option --dns-opt": ("OPTION", "Give the resolver an option."),
    "--cap-add": ("CAPABILITY", "Give a capability, or ALL."),
    "--cap-drop": ("CAPABILITY", "Take a capability away, or ALL."),
    "--security-opt": ("OPTION", "seccomp=FILE|unconfined, no-new-privileges, systempaths=unconfined, ..."),
    "--device": ("PATH[:PATH][:rwm]", "Give a device of the host."),
    "--device-cgroup-rule": ("RULE", "Allow devices: 'c 42:* rmw'."),
    "--device-read-bps": ("DEVICE:RATE", "Limit the bytes read in a second."),
    "--device-write-bps": ("DEVICE:RATE", "Limit the bytes written in a second."),
    "--device-read-iops": ("DEVICE:RATE", "Limit the reads in a second."),
    "--device-write-iops": ("DEVICE:RATE", "Limit the writes in a second."),
    "--blkio-weight-device": ("DEVICE:WEIGHT", "Give reads and writes of a device a weight."),
    "--group-add": ("GROUP", "Be in one more group."),
    "--ulimit": ("NAME=SOFT[:HARD]", "Set a limit: nofile=1024:2048."),
    "--sysctl": ("NAME=VALUE", "Set a kernel parameter of the container's namespaces."),
    "--log-opt": ("NAME=VALUE", "Set an option of the log: max-size=10m."),
    "--storage-opt": ("NAME=VALUE", "Not supported."),
}
"""Options that may be given any number of times."""
_TEXTS = {
    "-w --workdir": ("DIR", "Start in this directory of the container."),
    "-u --user": ("USER[:GROUP]", "Run as this user."),
    "-h --hostname": ("NAME", "Name the machine (else by the id)."),
    "--domainname": ("NAME", "Set its NIS domain name."),
    "--entrypoint": ("PROGRAM", "Run this in place of the image's entrypoint; '' for none."),
    "--restart": ("POLICY", "Start it again: no, on-failure[:N], always, unless-stopped."),
    "--stop-signal": ("SIGNAL", "End it by this signal."),
    "--volume-driver": ("DRIVER", "Make volumes by this driver."),
    "--shm-size": ("SIZE", "Give /dev/shm this size (64m)."),
    "--pid": ("host|container:NAME", "Share a namespace for processes."),
    "--ipc": ("MODE", "Share a namespace for IPC: host, none, private, shareable, container:NAME."),
    "--uts": ("host", "Have the host's name."),
    "--userns": ("host", "Have the host's users."),
    "--cgroupns": ("host|private", "Share the namespace for control groups, or not."),
    "--cgroup-parent": ("PATH", "Put it below this control group."),
    "--isolation": ("default", "Nothing else is supported."),
    "--runtime": ("NAME", "Run it by runc or crun."),
    "--log-driver": ("DRIVER", "Keep its output: json-file (the default), local, journald, none."),
    "--gpus": ("all|N", "Give GPUs; there must be a driver."),
    "--ip": ("ADDRESS", "Have this IPv4 address in the network."),
    "--ip6": ("ADDRESS", "Have this IPv6 address in the network."),
    "--mac-address": ("ADDRESS", "Have this address on the link."),
    "--health-cmd": ("COMMAND", "Check its health by this command."),
    "--health-interval": ("TIME", "Check so often (30s)."),
    "--health-timeout": ("TIME", "Give up a check after this time (30s)."),
    "--health-start-period": ("TIME", "Let checks fail for so long after the start (0s)."),
    "--health-start-interval": ("TIME", "Check so often in that time (5s)."),
    "--cidfile": ("FILE", "Write the container's id to a new FILE."),
    "--platform": ("OS/ARCH", "Take the image for this platform."),
}
_LIMITS = {
    "-m --memory": ("SIZE", "Limit its memory: 512m."),
    "--memory-reservation": ("SIZE", "Try to keep its memory below this."),
    "--memory-swap": ("SIZE", "Limit memory and swap together; -1 for no limit."),
    "--cpus": ("NUMBER", "Limit it to so many processors: 1.5."),
    "--cpuset-cpus": ("LIST", "Run on these processors: 0-3, 0,1."),
    "--cpuset-mems": ("LIST", "Use these memory nodes."),
}
_LIMIT_NUMBERS = {
    "-c --cpu-shares": ("Give it a share of the processors (1024 is usual).", 0),
    "--cpu-period": ("Set the period of its limit, in microseconds.", 0),
    "--cpu-quota": ("Limit its time within a period, in microseconds.", -1),
    "--cpu-rt-period": ("Set the period for realtime processes.", 0),
    "--cpu-rt-runtime": ("Limit the time of realtime processes.", -1),
    "--blkio-weight": ("Give its reads and writes a weight: 10 to 1000, or 0.", 0),
    "--pids-limit": ("Limit the number of its processes; -1 for no limit.", -1),
}
_FLAGS = {
    "-i --interactive": "Pass on what is read from standard input.",
    "-t --tty": "Give the container a terminal.",
    "--read-only": "Let nothing be written to its own files.",
    "--init": "Have a first process that reaps others and passes signals on.",
    "--privileged": "Give it all rights.",
    "-P --publish-all": "Publish every port that is exposed.",
    "--no-healthcheck": "Do not check its health, whatever the image says.",
    "--oom-kill-disable": "Let nothing of it be killed when memory is short.",
}
_MAY_BE_EMPTY = ("--workdir", "--user", "--hostname", "--domainname")
Command = Callable[..., Any]


def limit_options(command: Command) -> Command:
    """Give *command* the options of limits that can be changed while a container runs."""
    for names, (help_, least) in reversed(_LIMIT_NUMBERS.items()):
        command = click.option(*names.split(), metavar="N", type=click.IntRange(least), help=help_)(command)
    for names, (metavar, help_) in reversed(_LIMITS.items()):
        command = click.option(*names.split(), metavar=metavar, help=help_)(command)
    return command


def container_options(command: Command) -> Command:
    """Give *command* the options that say what a container is to be, by docker's names of them."""
    command = click.option("--oom-score-adj", metavar="N", type=int, default=0, help="Tune who is killed.")(
        command
    )
    command = click.option(
        "--memory-swappiness", metavar="N", type=click.IntRange(-1, 100), help="Tune swapping: 0 to 100."
    )(command)
    command = click.option(
        "--health-retries", metavar="N", type=int, default=0, help="So many failures make it unhealthy (3)."
    )(command)
    command = click.option(
        "--stop-timeout", metavar="SECONDS", type=int, help="Kill it so long after the signal to stop."
    )(command)
    command = limit_options(command)
    for names, (metavar, help_) in reversed(_TEXTS.items()):
        default = "" if names.split()[-1] in _MAY_BE_EMPTY else None
        command = click.option(*names.split(), metavar=metavar, help=help_, default=default)(command)
    for names, (metavar, help_) in reversed(_MANY.items()):
        command = click.option(*names.split(), metavar=metavar, multiple=True, help=help_)(command)
    for names, help_ in reversed(_FLAGS.items()):
        command = click.option(*names.split(), is_flag=True, help=help_)(command)
    command = click.option(
        "--pull",
        type=click.Choice(["missing", "always", "never"]),
        default="missing",
        help="Pull the image from its registry if the store does not have it (the default), or not.",
    )(command)
    # Docker's client has this for scripts that were written for another one of its versions: it does nothing.
    command = click.option("--disable-content-trust", is_flag=True, hidden=True)(command)
    return click.option("--name", metavar="NAME", help="Name the container.")(command)

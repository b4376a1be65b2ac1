# shellcheck shell=bash
# What the scripts share; sourced, not run. The caller's messages start with its own name.

# shellcheck disable=SC2034
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly checkout

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# Runs a command as root: directly, or through sudo with the environment kept.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo --preserve-env "$@"
    else
        die "needs root: run it as root, or install sudo"
    fi
}

# Starts the calling script again as root, unless it runs as root already.
become_root() {
    [[ $EUID -eq 0 ]] || {
        command -v sudo >/dev/null || die "needs root to mount: run it as root, or install sudo"
        exec sudo --preserve-env=CI,LAYERFS_CHECKED,LAYERFS_TEST_TIMEOUT,LAYERFS_TEST_PROCESSES,LAYERFS_CUTS,LAYERFS_ORACLE_STEPS,XDG_CACHE_HOME,http_proxy,https_proxy,no_proxy -- "$0" "$@"
    }
}

# Prints the mountpoints at and below a directory, the innermost first.
mounts_under() {
    local point
    while read -r _ _ _ _ point _; do
        printf -v point '%b' "$point" # the kernel writes a space as \040
        if [[ $point == "$1" || $point == "$1"/* ]]; then printf '%s\n' "$point"; fi
    done </proc/self/mountinfo | tac
}

# Prints the pids of the processes that were started with the given NAME=VALUE in their environment.
processes_with() {
    local file pid
    for file in $(grep -lzxFs -- "$1" /proc/[0-9]*/environ); do
        pid=${file//[^0-9]/}
        if [[ $pid != "$$" && $pid != "$BASHPID" && -d /proc/$pid ]]; then printf '%s\n' "$pid"; fi
    done
}

# Prints the control sockets below a directory on which somebody listens.
sockets_under() {
    local path
    while read -r _ _ _ _ _ _ _ path; do
        if [[ $path == "$1"/* ]]; then printf '%s\n' "$path"; fi
    done </proc/net/unix
}

# Unmounts everything below a directory and ends the processes that carry the given NAME=VALUE.
sweep() {
    local point pid
    while read -r point; do
        umount "$point" 2>/dev/null || umount --lazy "$point" || true
    done < <(mounts_under "$1")
    while read -r pid; do
        kill -KILL "$pid" 2>/dev/null || true
    done < <(processes_with "$2")
}

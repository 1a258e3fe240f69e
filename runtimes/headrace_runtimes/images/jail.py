"""Where buildah runs: it sees no file of the host but programs, and its root is nobody's on the host.

Its steps are no containers: they share buildah's namespaces, and a root directory of their own holds nobody
with the right to change it. So everything is taken from buildah itself before it starts: the root has the
host's ``/usr`` (read-only), six devices and its own directory; what was mounted before is gone; its user
namespace has a range of ids that no sandbox has; and it has no more processes than `PROCESSES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headrace_runtimes.images.limits import CORE_BYTES

FIRST_ID, ID_COUNT = 0x3FFF_0000, 65_536
"""Host ids of builds: those just below the ones of containers (`oci.slots`)."""
OWN, TOOL = "/build", "/tool"
"""Where its own directory and the program itself appear."""
PROCESSES = 4096
OOM_SCORE = 300
"""When the machine runs out of memory, a build goes before instances do."""

SCRIPT = (
    r"""
set -e
umask 022
J=$1 OWN=$2 TOOL=$3 SPACE=$4 MORE=$5
shift 5
show() {
    # What is there already may be the host's own, seen through a directory that was shown before.
    if [ -e "$J$2" ]; then :
    elif [ -d "$1" ]; then mkdir -p "$J$2"
    else mkdir -p "$J${2%/*}"; : > "$J$2"; fi
    mount --bind "$1" "$J$2"
    mount -o "remount,bind,$3" "$J$2"
}
mount -t tmpfs -o mode=755,size=1m,nosuid jail "$J"
for name in bin sbin lib lib32 lib64 libx32 usr; do
    if [ -L "/$name" ]; then cp -P "/$name" "$J/$name"
    elif [ -d "/$name" ]; then show "/$name" "/$name" ro,nosuid,nodev; fi
done
for path in /etc/resolv.conf /etc/hosts /etc/nsswitch.conf /etc/ssl/certs /etc/ca-certificates /etc/pki/tls \
    /etc/pki/ca-trust /etc/containers /etc/alternatives /etc/ld.so.cache; do
    if [ -e "$path" ]; then show "$path" "$path" ro,nosuid,nodev,noexec; fi
done
echo 'root:x:0:0:root:/build:/bin/sh' > "$J/etc/passwd"
echo 'root:x:0:' > "$J/etc/group"
for name in null zero full random urandom tty; do show "/dev/$name" "/dev/$name" rw,nosuid,noexec; done
ln -s /proc/self/fd "$J/dev/fd"
mkdir "$J/dev/shm" "$J/dev/pts" "$J/proc" "$J/sys" "$J/tmp" "$J/run" "$J/var" "$J/old"
ln -s /build/tmp "$J/var/tmp"
mount -t tmpfs -o size=64m,mode=1777,nosuid,nodev shm "$J/dev/shm"
show "$OWN" /build rw,nodev
show "$TOOL" /tool ro,nosuid,nodev
while [ "$MORE" -gt 0 ]; do
    show "$2" "$2" "$1,nosuid,nodev"
    shift 2
    MORE=$((MORE - 1))
done
mount -t proc -o nosuid,nodev,noexec proc "$J/proc"
echo OOM > /proc/self/oom_score_adj
cd "$J"
pivot_root . old
umount -l old
rmdir old
mount -o remount,ro,nosuid /
cd /build
prlimit --core=CORE:CORE --pid $$
nsenter --user="/proc/self/fd/$SPACE" --setuid 0 --setgid 0 -- \
    prlimit --nproc=PROCESSES -- unshare --mount --ipc --uts -- "$@"
""".replace("OOM", str(OOM_SCORE), 1)
    .replace("PROCESSES", str(PROCESSES))
    .replace("CORE", str(CORE_BYTES))
)


def jailed(
    root: Path,
    own: Path,
    tool: str,
    userns: int,
    argv: Sequence[str],
    *,
    shown: Sequence[Path] = (),
    writable: Sequence[Path] = (),
) -> list[str]:
    """What to run in mount and process namespaces of its own (`tool.LEASH`), as root, for ``argv`` in a jail.

    ``root``: an empty directory to build it on; ``own``: belongs to `FIRST_ID`; ``tool``: path of the
    program; ``userns``: an inherited descriptor of `userns.user_namespace`; ``shown``, ``writable``: of the
    host, at the same paths inside.
    """
    more = [("rw", path) for path in writable] + [("ro", path) for path in shown]
    words = [word for mode, path in more for word in (mode, str(path))]
    # The shell stays in between: who changes his ids loses the tie to his parent's death.
    return ["sh", "-c", SCRIPT, "jail", str(root), str(own), tool, str(userns), str(len(more)), *words, *argv]

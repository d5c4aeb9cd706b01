"""Replace this process by a command that must not run as root: `python -m … --data FOLDER -- COMMAND…`.

PostgreSQL refuses to run as root, and continuous integration likes to be root in a folder that only root
may enter. The wheel's own answer is to create a system user and to open every folder up to `/` for
everybody. Ours leaves the machine as it is:

1. A user namespace in which root is called `nobody`. The command sees an ordinary user, and the kernel still
   knows the owner of the files: closed folders stay open to it, and its files belong to us.
2. Where namespaces are forbidden (Docker's default profile): become `nobody` in earnest, own the data folder,
   and keep the single capability that passes closed folders.

Not root: the command runs as it is.
"""

import argparse
import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from turnkeeper_ops.services import linux


def main(arguments: Sequence[str]) -> None:
    """Become unprivileged if need be, then become the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    if os.geteuid() == 0:
        _leave_root(options.data)
    os.execv(options.command[0], options.command)  # noqa: S606 - being replaced is the purpose


def _leave_root(data: Path) -> None:
    if sys.platform != "linux":
        sys.exit("PostgreSQL does not run as root: start this as an ordinary user")
    parent = os.getppid()
    nobody = pwd.getpwnam("nobody")
    if _may_enter_namespace(nobody):
        _own(data, os.geteuid(), os.getegid())
        linux.enter_namespace_as(nobody.pw_uid, nobody.pw_gid)
    else:
        _own(data, nobody.pw_uid, nobody.pw_gid)
        linux.become(nobody.pw_uid, nobody.pw_gid)
    linux.die_with_parent()
    if os.getppid() != parent:
        sys.exit("the guard has gone")


def _may_enter_namespace(user: pwd.struct_passwd) -> bool:
    """Try in a fork: a process that fails halfway cannot return."""
    probe = os.fork()
    if probe == 0:
        try:
            linux.enter_namespace_as(user.pw_uid, user.pw_gid)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(probe, 0)[1] == 0


def _own(data: Path, uid: int, gid: int) -> None:
    """Give the data folder to the user the command will be; the last run may have been the other way."""
    if data.stat().st_uid == uid:
        return
    for folder, folders, files in os.walk(data, topdown=False):
        for name in (*folders, *files):
            os.chown(Path(folder, name), uid, gid, follow_symlinks=False)
    os.chown(data, uid, gid)


if __name__ == "__main__":
    main(sys.argv[1:])

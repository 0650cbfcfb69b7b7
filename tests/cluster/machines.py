"""Several machines on one, by Linux namespaces: each has its own processes, network, host name and
/etc/hosts.

Nothing of the real machine's network is touched: the bridge that joins them lives in a namespace,
too, and everything ends with the process that made it, whatever happens to that. Needs root and
iproute2.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from scripts.config.paths import ROOT

INIT = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(flush=True)
sys.stdin.read()
"""
"""What runs as a machine's first process: it reaps orphans, and ends when the process that started
it has ended.
"""


class Machine:
    """A machine without a cable."""

    def __init__(self, name: str, hosts: Path) -> None:
        """hosts: what it finds at /etc/hosts."""
        self.name = name
        boot = (
            'mount --bind "$1" /etc/hosts && mount --bind /dev/null /etc/resolv.conf && '
            'hostname "$2" && ip link set lo up && exec "$3" -c "$4"'
        )
        unshare = "unshare --net --uts --mount --pid --fork --kill-child --mount-proc bash -c"
        command = [*unshare.split(), boot, "boot", str(hosts), name, sys.executable, INIT]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n", f"{name} did not start"
        self.init = first_child(self.process.pid)

    def command(self, *arguments: object) -> list[str]:
        """The command line that runs `arguments` on this machine."""
        inside = f"nsenter --target={self.init} --net --uts --mount --pid"
        return [*inside.split(), f"--wd={ROOT}", "--", *map(str, arguments)]

    def pids(self, start: str) -> list[int]:
        """Processes of this machine (numbers outside of it) whose command lines start like this
        pattern, paths aside; oldest first.
        """
        namespace, found = Path(f"/proc/{self.init}/ns/pid").readlink(), []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                words = (entry / "cmdline").read_text().split("\0")
                names = " ".join(word.rpartition("/")[2] for word in words if word != "-u")
                here = (entry / "ns/pid").readlink() == namespace
                if here and re.match(start, names):
                    found.append(int(entry.name))
        return sorted(found)

    def training(self) -> list[int]:
        """Its processes that train."""
        return self.pids(r"python\S* train\.py ")

    def kill_all(self) -> None:
        """SIGKILL to every process; the kernel still tells the others that their connections are
        gone.
        """
        os.kill(self.init, signal.SIGKILL)
        self.process.wait()


class Network:
    """`count` machines, node0, node1, ..., on one switch."""

    def __init__(self, count: int, directory: Path) -> None:
        """directory: for a file of host names."""
        hosts = directory / "hosts"
        hosts.write_text(
            "127.0.0.1 localhost\n" + "".join(f"10.77.0.1{i} node{i}\n" for i in range(count))
        )
        self.switch = Machine("switch", hosts)
        self.machines: list[Machine] = []
        self.hosts = hosts
        self._switch("ip link add bridge type bridge")
        self._switch("ip link set bridge up")
        for i in range(count):
            self.machines.append(Machine(f"node{i}", hosts))
            self.connect(i)

    def _switch(self, command: str) -> None:
        """Run a command in the switch's network, but among the processes of the real machine."""
        inside = ["nsenter", f"--target={self.switch.init}", "--net"]
        subprocess.run([*inside, *command.split()], check=True)

    def connect(self, i: int) -> None:
        """Give machine `i` its cable."""
        machine = self.machines[i]
        other_end = f"peer name eth0 netns {machine.init}"
        self._switch(f"ip link add port{i} type veth {other_end}")
        self._switch(f"ip link set port{i} master bridge up")
        for command in (f"ip address add 10.77.0.1{i}/24 dev eth0", "ip link set eth0 up"):
            subprocess.run(machine.command(*command.split()), check=True)

    def restart(self, i: int) -> None:
        """Machine `i` anew, after `kill_all`."""
        self.machines[i] = Machine(f"node{i}", self.hosts)
        self.connect(i)

    def close(self) -> None:
        """End everything that runs on the machines."""
        for machine in (*self.machines, self.switch):
            if machine.process.poll() is None:
                machine.kill_all()


def first_child(pid: int) -> int:
    """The first child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

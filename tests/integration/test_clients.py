"""`luciola clients` on a real cluster: who is connected, and what is open."""

import os

from cluster import LocalCluster
from luciola import __version__
from luciola.client import connect


def test_program_and_mount_are_listed_with_their_open_files(shared_cluster: LocalCluster) -> None:
    with connect(str(shared_cluster.data)) as fs:
        fs.write("/clients-read", b"x")
        with fs.open("/clients-written", "wb") as written, fs.open("/clients-read", "rb"):
            written.write(b"x")
            listed = shared_cluster.ask("clients")
        (mine,) = [each for each in listed if each["description"] == f"python {os.getpid()}"]
        assert (mine["kind"], mine["pid"], mine["host"]) == ("client", os.getpid(), os.uname().nodename)
        assert (mine["write_sessions"], mine["read_holds"]) == (1, 1)
        assert mine["silent_s"] < 60
        assert mine["release"] == __version__
        fs.remove("/clients-read")
        fs.remove("/clients-written")
    mounts = [each for each in listed if each["kind"] == "mount"]
    assert f"mount on {shared_cluster.mountpoint}" in {each["description"] for each in mounts}
    assert f"python {os.getpid()}" not in {each["description"] for each in shared_cluster.ask("clients")}

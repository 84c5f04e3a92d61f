"""Real programs on the mount."""

import filecmp
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import luciola
from cluster import LocalCluster

pytestmark = [pytest.mark.mount, pytest.mark.timeout(600)]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs a program, and shows what it said when it fails."""
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=1000, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result.stdout


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    """Every path below `root` with what a faithful copy keeps."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory) / name
            info = path.lstat()
            target = os.readlink(path) if path.is_symlink() else None
            size = info.st_size if not path.is_dir() or path.is_symlink() else None
            found[str(path.relative_to(root))] = (
                info.st_mode,
                info.st_mtime_ns,
                info.st_uid,
                info.st_gid,
                target,
                size,
            )
    return found


def assert_same_tree(left: Path, right: Path) -> None:
    wanted, found = describe(left), describe(right)
    # Said name by name: a difference of two such large tables takes minutes to print.
    different = [name for name in {*wanted, *found} if wanted.get(name) != found.get(name)]
    assert different == [], [(name, wanted.get(name), found.get(name)) for name in different[:5]]
    for name in wanted:
        if (left / name).is_file() and not (left / name).is_symlink():
            assert filecmp.cmp(left / name, right / name, shallow=False), name


# A thousand files are enough.
LEFT_OUT = ("site-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "tkinter", "config-*")


def test_standard_library_by_cp_and_tar_seen_by_another_mount_and_by_python(
    shared_cluster: LocalCluster, mounted_dir: Path, tmp_path: Path
) -> None:
    source = Path(sysconfig.get_path("stdlib"))
    local = tmp_path / "stdlib"
    shutil.copytree(source, local, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    os.symlink("os.py", local / "a-symlink")
    os.link(local / "os.py", local / "a-hard-link")
    run("cp", "-a", local, mounted_dir / "by-cp")
    (mounted_dir / "by-tar").mkdir()
    pack = f"tar --format=posix -C {local} -cf - ."
    run("bash", "-c", f"{pack} | tar -C {mounted_dir / 'by-tar'} -xpf -")
    assert_same_tree(local, mounted_dir / "by-cp")
    with shared_cluster.mounted("second") as second:
        assert shared_cluster.mountpoint is not None
        by_tar = second / mounted_dir.relative_to(shared_cluster.mountpoint) / "by-tar"
        assert_same_tree(local, by_tar)
    with luciola.connect(str(shared_cluster.data)) as fs:
        base = "/" + str(mounted_dir.relative_to(shared_cluster.mountpoint)) + "/by-cp"
        for directory, _, names in os.walk(local):
            for name in names:
                path = Path(directory) / name
                remote = f"{base}/{path.relative_to(local)}"
                if path.is_symlink():
                    assert os.fsdecode(fs.readlink(remote)) == os.readlink(path)
                else:
                    with fs.open(remote, "rb") as file:
                        assert file.read() == path.read_bytes(), remote
    links = os.stat(mounted_dir / "by-cp" / "a-hard-link")
    assert links.st_nlink == 2
    assert links.st_ino == os.stat(mounted_dir / "by-cp" / "os.py").st_ino


def test_git_clones_and_finds_its_tree_clean(mounted_dir: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    run("git", "init", "-q", origin)
    for index in range(300):
        (origin / f"file-{index}.txt").write_text(f"line {index}\n" * (index + 1))
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    run("git", "add", "-A", cwd=origin)
    run("git", *identity, "commit", "-q", "-m", "everything", cwd=origin)
    clone = mounted_dir / "clone"
    run("git", "clone", "-q", origin, clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    (clone / "file-7.txt").write_text("changed\n")
    assert run("git", "status", "--porcelain", cwd=clone) == " M file-7.txt\n"
    run("git", *identity, "commit", "-q", "-am", "a change", cwd=clone)
    run("git", "gc", "-q", cwd=clone)
    run("git", "fsck", "--strict", cwd=clone)


def test_sqlite_keeps_hundreds_of_transactions(mounted_dir: Path) -> None:
    path = mounted_dir / "data.sqlite"
    for mode in ("DELETE", "TRUNCATE"):
        with sqlite3.connect(path) as database:
            database.execute(f"PRAGMA journal_mode={mode}")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute("CREATE TABLE IF NOT EXISTS numbers (mode TEXT, value INTEGER)")
        database.close()
        database = sqlite3.connect(path, isolation_level=None)
        for value in range(100):
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO numbers VALUES (?, ?)", (mode, value))
            database.execute("COMMIT")
        database.close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = database.execute(
        "SELECT mode, count(*), sum(value) FROM numbers GROUP BY mode ORDER BY mode"
    ).fetchall()
    database.close()
    assert rows == [("DELETE", 100, 4950), ("TRUNCATE", 100, 4950)]


def test_pip_installs_into_an_environment_on_the_mount(mounted_dir: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", mounted_dir / "venv")
    python = mounted_dir / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "-q", "click")
    assert run(python, "-c", "import click; print(click.__name__)") == "click\n"


def test_rsync_finds_nothing_to_do_the_second_time(mounted_dir: Path, tmp_path: Path) -> None:
    local = tmp_path / "tree"
    run("cp", "-a", Path(sysconfig.get_path("stdlib")) / "asyncio", local)
    run("rsync", "-aH", f"{local}/", f"{mounted_dir}/tree/")
    assert_same_tree(local, mounted_dir / "tree")
    changes = run("rsync", "-aHi", "--checksum", f"{local}/", f"{mounted_dir}/tree/")
    assert changes == ""


@pytest.mark.parametrize("block", ["4k", "64k", "1m", "4m"])
@pytest.mark.parametrize("pattern", ["write", "randwrite", "randrw"])
@pytest.mark.parametrize("direct", ["0", "1"])
def test_fio_verifies_what_it_wrote(mounted_dir: Path, block: str, pattern: str, direct: str) -> None:
    size = {"4k": "4m", "64k": "16m", "1m": "32m", "4m": "32m"}[block]
    run(
        "fio",
        "--name=verify",
        f"--filename={mounted_dir}/data",
        f"--rw={pattern}",
        f"--bs={block}",
        f"--size={size}",
        f"--direct={direct}",
        "--ioengine=psync",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--fallocate=none",
        "--end_fsync=1",
    )

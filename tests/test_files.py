"""Files that are whole or as they were, and that one process writes at a time."""

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ase
import pytest

from lamjax import data, files

HOLD = """
import sys, time
from lamjax import files
with files.alone(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "deep" / "file"
    files.write_atomically(path, b"old")
    with pytest.raises(OSError, match="full"), files.replacing(path) as temporary:
        temporary.write_bytes(b"ne")
        raise OSError("disk full")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "large disk").mkdir()
    target, link = tmp_path / "large disk" / "file", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"first", b"second"):  # the link leads nowhere at first
        files.write_atomically(link, content)
        assert link.is_symlink() and target.read_bytes() == content
    assert {p.name for p in tmp_path.rglob("*")} == {"large disk", "file", "link"}


@pytest.mark.parametrize("mask, mode", [(0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_a_file_is_what_its_user_has_chosen(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        files.write_atomically(tmp_path / "new", b"")
        data.write_store(tmp_path / "new.h5", [data.from_atoms(ase.Atoms("H"))])
        (tmp_path / "old").touch(0o640)
        (tmp_path / "old").chmod(0o640)
        files.write_atomically(tmp_path / "old", b"")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": mode, "new.h5": mode, "old": 0o640}


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    """A run as root with --output /dev/null took /dev/null from the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_atomically(pipe, b"content")
    assert files.is_device(pipe) and os.read(reader, 100) == b"content"
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]


def test_what_is_cut_must_have_been_longer(tmp_path):
    path = tmp_path / "file"
    files.append(path, b"0123")
    files.append(path, b"4567")
    files.cut(path, 5)
    assert path.read_bytes() == b"01234" and files.size(path) == 5
    with pytest.raises(ValueError, match="has 5 bytes, but 6"):
        files.cut(path, 6)
    assert files.size(tmp_path / "none") == 0


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, as in a program that a shell has not put into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_what_is_being_written(interruptible):
    done = []
    with pytest.raises(KeyboardInterrupt), files.uninterrupted():
        for k in range(3):  # whoever is impatient presses again
            signal.raise_signal(signal.SIGINT)
            done.append(k)
    with pytest.raises(KeyboardInterrupt), files.uninterrupted():
        with files.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(3)
        done.append(4)
    assert done == [0, 1, 2, 3, 4]
    with files.uninterrupted():
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_not_lost_with_an_error_and_ignored_where_it_was(interruptible):
    with pytest.raises(KeyboardInterrupt), files.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        raise OSError("disk full")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with files.uninterrupted():
        signal.raise_signal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:

        def inside():
            with files.uninterrupted():
                return signal.getsignal(signal.SIGINT)

        assert pool.submit(inside).result() is signal.SIG_IGN


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_one_process_writes_at_a_time_and_a_killed_one_does_not_hold(tmp_path):
    path = tmp_path / "deep" / "run.h5"
    other = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    with other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="Another process is writing .*run.h5.* another output"), files.alone(path):
            pass
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    with files.alone(path), pytest.raises(ValueError, match="Another process"), files.alone(path):
        pass
    with files.alone(path):
        path.touch()
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_a_lock_whose_file_is_gone_is_none(tmp_path, monkeypatch):
    """Another process ended between this one's opening of its lock and the locking."""
    path, lock, flock = tmp_path / "run.h5", tmp_path / ".run.h5.lock", files.fcntl.flock
    for left in (True, False):  # a third one has made the file anew, or not yet

        def late(file, how, left=left):
            monkeypatch.setattr(files.fcntl, "flock", flock)
            lock.unlink()
            lock.touch() if left else None
            flock(file, how)

        monkeypatch.setattr(files.fcntl, "flock", late)
        with files.alone(path), pytest.raises(ValueError, match="Another process"), files.alone(path):
            pass
        assert not lock.exists()

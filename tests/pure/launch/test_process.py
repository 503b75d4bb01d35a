"""A command under offramp meets the same signals, files and terminal as one started directly."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import BARE_CHIP, arguments, environment

Offramp = Callable[..., subprocess.CompletedProcess[str]]
RUN = ("run", "--chip", BARE_CHIP, "--run-dir", "out", "--")

# Counts the signals that it gets, for half a second after the first, and tells them.
COUNTER = """
import signal, sys, time
seen = []
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1"):
    signal.signal(getattr(signal, name), lambda number, frame: seen.append(number))
print("ready", flush=True)
until = time.monotonic() + 20
while not seen and time.monotonic() < until:
    time.sleep(0.01)
until = time.monotonic() + 0.6
while time.monotonic() < until:
    time.sleep(0.01)
print("got", *sorted(seen), flush=True)
sys.exit(7)
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def program(write: Callable[[str, str], Path]) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a program under offramp in a session of its own, and waits for its first line."""

    def start(text: str) -> subprocess.Popen[str]:
        path = write("program.py", text)
        process = subprocess.Popen(
            arguments(*RUN, sys.executable, str(path)),
            cwd=path.parent,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        return process

    return start


def late(group: int, number: int) -> None:
    """To the whole group, of which offramp is the last to run: a second one would be counted."""
    os.kill(group, signal.SIGSTOP)
    os.killpg(group, number)
    time.sleep(0.2)
    os.kill(group, signal.SIGCONT)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1"])
@pytest.mark.parametrize("send", [os.kill, os.killpg, late], ids=["process", "group", "late"])
def test_each_signal_arrives_exactly_once(
    program: Callable[[str], subprocess.Popen[str]], send: Callable[[int, int], None], name: str
) -> None:
    number = getattr(signal, name)
    process = program(COUNTER)
    send(process.pid, number)
    output, _ = process.communicate(timeout=30)
    assert output.split() == ["got", str(int(number))]
    assert process.returncode == 7


def test_two_signals_to_offramp_arrive_twice(
    program: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = program(COUNTER)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.4)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=30)
    assert output.split() == ["got", *[str(int(signal.SIGUSR1))] * 2]


@pytest.mark.parametrize(("key", "name"), [(b"\x03", "SIGINT"), (b"\x1c", "SIGQUIT")])
def test_a_key_on_the_terminal_arrives_exactly_once(
    write: Callable[[str, str], Path], key: bytes, name: str
) -> None:
    path = write("program.py", COUNTER)
    leader, terminal = pty.openpty()
    process = subprocess.Popen(
        arguments(*RUN, sys.executable, str(path)),
        cwd=path.parent,
        env=environment(),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    seen = b""
    sent = False
    try:
        while True:
            seen += os.read(leader, 4096)
            if b"ready" in seen and not sent:
                sent = True
                os.write(leader, key)
    except OSError:  # the terminal closes with the last process on it
        pass
    os.close(leader)
    assert process.wait(timeout=30) == 7
    assert re.findall(r"got[ \d]*", seen.decode()) == [f"got {int(getattr(signal, name))}"]
    assert "ended" in seen.decode(), "the report is on the terminal"


def test_a_suspended_run_goes_on_where_it_stood(
    program: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = program(COUNTER)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert output.split() == ["got", str(int(signal.SIGTERM))]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL", "SIGABRT"])
def test_status_of_a_killed_command_is_that_of_shells(offramp: Offramp, name: str) -> None:
    number = int(getattr(signal, name))
    result = offramp(*RUN, "sh", "-c", f"kill -{number} $$")
    assert result.returncode == 128 + number
    assert f"killed by {name}" in result.stderr


def test_killing_offramp_outright_ends_the_command(
    program: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = program(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nprint('ready')\ntime.sleep(60)"
    )
    process.kill()
    process.communicate(timeout=10)
    wait_for(lambda: gone(int((tmp_path / "pid").read_text())), "the command's end")


@pytest.mark.parametrize("status", [0, 1, 2, 77, 255])
def test_exit_status_is_the_commands(offramp: Offramp, status: int) -> None:
    assert offramp(*RUN, "sh", "-c", f"exit {status}").returncode == status


def test_a_signal_that_was_ignored_stays_ignored(
    write: Callable[[str, str], Path],
) -> None:
    code = "import signal; print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    path = write("program.py", code)
    for ignore in (True, False):
        process = subprocess.run(
            arguments("run", "--chip", BARE_CHIP, "--", sys.executable, str(path)),
            cwd=path.parent,
            env=environment(),
            preexec_fn=lambda on=ignore: on and signal.signal(signal.SIGHUP, signal.SIG_IGN),
            capture_output=True,
            text=True,
            check=True,
        )
        assert process.stdout.strip() == str(ignore)


def test_signal_mask_and_open_files_are_inherited(write: Callable[[str, str], Path]) -> None:
    path = write(
        "program.py",
        "import os, signal, sys\n"
        "assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "print(os.read(int(sys.argv[1]), 9).decode(), os.getpgrp() == int(sys.argv[2]))",
    )
    reader, writer = os.pipe()
    os.write(writer, b"inherited")
    process = subprocess.run(
        arguments(*RUN, sys.executable, str(path), str(reader), str(os.getpgrp())),
        cwd=path.parent,
        env=environment(),
        pass_fds=[reader],
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(reader)
    os.close(writer)
    assert process.stdout == "inherited True\n"


def test_standard_streams_are_the_commands(offramp: Offramp) -> None:
    result = offramp(*RUN, "cat", stdin="from the pipe\n")
    assert result.stdout == "from the pipe\n"

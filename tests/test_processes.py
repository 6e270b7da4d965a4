"""Processes that are started, heard, and ended: all of them, for one reason, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes_work import interrupt_soon

from nearfar import processes
from nearfar.cores import cores
from nearfar.errors import InputError, ProcessLostError
from nearfar.processes import supervise


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE", 0.2)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not asked how does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_returns_its_result_and_all_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "nowhere.example")
    heard: list[tuple[str, Any]] = []
    found = supervise("processes_work:report", {"b": 1}, processes=3, hear=lambda word, values: heard.append((word, values)))
    assert sorted(heard) == [("word", [rank, ["a", {"b": 1}]]) for rank in range(3)]
    share = str(max(1, cores() // 3))
    for rank, one in enumerate(found):
        assert (one["rank"], one["LOCAL_RANK"], one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"]) == (rank, str(rank), "3", "3")
        assert (one["OMP_NUM_THREADS"], one["MKL_NUM_THREADS"], one["MASTER_ADDR"]) == (share, share, None)
        assert not one["torch"]
        assert not alive(one["pid"])


def test_threads_are_those_that_the_user_or_the_caller_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    (found,) = supervise("processes_work:report", None, processes=1)
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("7", None)
    (found,) = supervise("processes_work:report", None, processes=1, threads=2)
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("2", "2")


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ("input", InputError, "what process 1 says"),
        ("defect", RuntimeError, "process 1 of 2 failed: ZeroDivisionError: a defect"),
        ("interrupted", KeyboardInterrupt, ""),
        ("killed", ProcessLostError, "process 1 of 2 was ended by SIGKILL"),
        ("mute", ProcessLostError, "process 1 of 2 ended with exit code 9: the last line"),
        ("late", ProcessLostError, "the processes did not end in time"),
    ],
)
def test_one_that_fails_ends_all_with_what_it_says(how: str, error: type[BaseException], said: str) -> None:
    heard: list[str] = []
    timeout = 0.5 if how == "late" else 100.0
    with pytest.raises(error) as raised:
        supervise("processes_work:fail", how, processes=2, timeout=timeout, hear=lambda word, values: heard.append(word))
    assert str(raised.value) == said
    assert not heard
    if how == "defect":
        assert 'raise ZeroDivisionError("a defect")' in str(raised.value.__cause__)


def test_a_signal_is_passed_on_once_and_waited_for(tmp_path: Path) -> None:
    heard: list[int] = []

    def hear(word: str, values: list[Any]) -> None:
        heard.append(values[0])
        if len(heard) == 2:
            interrupt_soon(1, 0.05)

    with pytest.raises(KeyboardInterrupt):
        supervise("processes_work:wait_for_the_signal", str(tmp_path), processes=2, hear=hear)
    assert {path.name for path in tmp_path.iterdir()} == {"stopped-0", "stopped-1"}
    assert not any(map(alive, heard))


def test_a_signal_before_they_have_begun_is_not_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    interrupt_soon(1, 0.01)
    with pytest.raises(KeyboardInterrupt):
        supervise("processes_work:wait_for_the_signal", str(tmp_path), processes=2, shown=True)
    assert capfd.readouterr() == ("", "")


def test_a_second_signal_kills_those_that_do_not_stop(tmp_path: Path) -> None:
    heard: list[int] = []

    def hear(word: str, values: list[Any]) -> None:
        heard.append(values[0])
        if len(heard) in (2, 4):  # both have begun; both have been told to stop, and go on
            interrupt_soon(1, 0.2)

    with pytest.raises(KeyboardInterrupt):
        supervise("processes_work:never_stop", str(tmp_path), processes=2, hear=hear)
    assert len(heard) == 4
    assert not any(map(alive, heard))


def test_a_watcher_that_raises_ends_them() -> None:
    pids: list[int] = []

    def hear(word: str, values: list[Any]) -> None:
        pids.append(values[0])
        raise LookupError("enough")

    with pytest.raises(LookupError):
        supervise("processes_work:never_stop", "", processes=2, hear=hear)
    assert not alive(pids[0])


def test_none_outlives_a_program_that_is_killed(tmp_path: Path) -> None:
    code = f"from processes_work import start_others; start_others({str(tmp_path)!r})"
    paths = os.pathsep.join(path for path in sys.path if path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout is not None
        pids = [int(word) for word in program.stdout.readline().split()]
        program.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    end = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(alive, pids))
    assert {path.name for path in tmp_path.iterdir()} == {"stopped-0", "stopped-1", "temporary"}, "they had time to stop"
    assert not any(temporary.iterdir())


def test_a_machine_that_starts_no_more_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = subprocess.Popen, []

    def popen(*args: Any, **kwargs: Any) -> Any:
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(real(*args, **kwargs))
        return started[0]

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    with pytest.raises(InputError, match=r"cannot start process 1 of 2 \(Resource temporarily unavailable\); start fewer"):
        supervise("processes_work:report", None, processes=2)
    assert started[0].returncode is not None


def test_ctrl_c_is_left_to_who_started_them_also_while_signals_are_held_back() -> None:
    program = (
        "import os, signal\n"
        "from nearfar.interrupts import deferred_interrupts, leave_ctrl_c\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "leave_ctrl_c()\n"
        "with deferred_interrupts(several=True) as interrupted:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert not interrupted()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert interrupted()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")

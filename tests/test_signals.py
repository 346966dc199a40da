"""Ctrl-C and SIGTERM: one line, the right exit code, within seconds, whatever the program is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .killed_runs import Moment, call_python, partial_files
from .test_command import command, environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no signals to stop a process by")

ADVICE = "finished shards are kept. Run the command again, with output.existing=resume, to go on."
LINE = f"{{}}: {ADVICE}\n"
BOTH = pytest.mark.parametrize(
    ("sent", "line", "exit_code"),
    [(signal.SIGINT, LINE.format("interrupted"), 130), (signal.SIGTERM, LINE.format("terminated"), 143)],
    ids=["interrupt", "terminate"],
)
# What the main thread of the child does once it hears signals; it never ends by itself.
WAITING = """
import hashlib, signal, sys, threading, time
from pipeline import signals

def answer():
    try:
        print("ready", flush=True)
        {work}
    except (KeyboardInterrupt, signals.Terminated) as error:
        {answer}
        signals.stop(error)

signals.GRACE_SECONDS = {grace}
signals.install({advice!r})
{before}
answer()
"""
COMPUTING = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
SLEEPING = "time.sleep(600)"


def stop_waiting(
    *sent: signal.Signals,
    work: str,
    answer: str = "pass",
    grace: float = 600,
    before: str = "signals.raise_in_main_thread()",
) -> tuple[int, str, float]:
    """Gives exit code, stderr and seconds of a child that is sent these signals, 0.1 s apart, at its work."""
    program = WAITING.format(work=work, answer=answer, grace=grace, before=before, advice=ADVICE)
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        for number in sent:
            time.sleep(0.1)
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
    return process.returncode, said, time.monotonic() - began


def test_a_signal_that_comes_while_libraries_are_loaded_is_one_line(tmp_path: Path) -> None:
    for module, sent in (("hydra", signal.SIGINT), ("omegaconf*", signal.SIGTERM), ("pipeline.config", signal.SIGINT)):
        moment = Moment("import", module, 1, sent)
        ended = call_python(tmp_path, ["-m", "pipeline.run", "data.dir=x", "network.weights=random"], tmp_path, moment)
        word = "interrupted" if sent == signal.SIGINT else "terminated"
        assert (ended.returncode, ended.stderr) == (moment.exit_code, LINE.format(word))


@BOTH
def test_a_signal_is_heeded_at_once_and_in_order(sent: signal.Signals, line: str, exit_code: int) -> None:
    code, said, seconds = stop_waiting(sent, work=SLEEPING, answer="print('tidied up', file=sys.stderr)")
    assert (code, said) == (exit_code, f"tidied up\n{line}")
    assert seconds < 30


@BOTH
def test_a_long_computation_cannot_keep_the_process_from_ending(sent: signal.Signals, line: str, exit_code: int) -> None:
    assert stop_waiting(sent, work=COMPUTING, grace=0.2)[:2] == (exit_code, line)


def test_what_is_cut_off_leaves_nothing_unfinished() -> None:
    clearing = f"""
        with signals.clearing(lambda: print("cleared", file=sys.stderr)):
            {COMPUTING}"""
    assert stop_waiting(signal.SIGINT, work=clearing.lstrip(), grace=0.2)[:2] == (130, "cleared\n" + LINE.format("interrupted"))
    failing = clearing.replace("print(", "missing(")
    assert stop_waiting(signal.SIGINT, work=failing.lstrip(), grace=0.2)[:2] == (130, LINE.format("interrupted"))


def test_what_answers_a_signal_cannot_keep_the_process_from_ending() -> None:
    lock = "lock = threading.Lock(); lock.acquire(); lock.acquire()"
    assert stop_waiting(signal.SIGINT, work=SLEEPING, answer=lock, grace=0.2)[:2] == (130, LINE.format("interrupted"))


def test_what_python_clears_away_at_its_end_is_not_waited_for() -> None:
    slow = "import atexit; atexit.register(time.sleep, 600)"
    code, said, seconds = stop_waiting(signal.SIGINT, work=SLEEPING, before=f"{slow}; signals.raise_in_main_thread()")
    assert (code, said) == (130, LINE.format("interrupted"))
    assert seconds < 60


def test_a_second_signal_does_not_disturb_the_answer_to_the_first() -> None:
    signals = (signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    code, said, _ = stop_waiting(*signals, work=SLEEPING, answer="time.sleep(0.5); print('tidied up', file=sys.stderr)")
    assert (code, said) == (130, "tidied up\n" + LINE.format("interrupted"))


def test_a_signal_that_is_swallowed_ends_the_process_all_the_same() -> None:
    # As where it comes while the interpreter clears an object away.
    swallow = "exec('try: time.sleep(600)\\nexcept BaseException: pass'); time.sleep(600)"
    assert stop_waiting(signal.SIGTERM, work=swallow, grace=0.2)[:2] == (143, LINE.format("terminated"))


def test_what_is_ignored_by_the_caller_stays_ignored() -> None:
    ignoring = "signal.signal(signal.SIGINT, signal.SIG_IGN); signals.install(''); signals.raise_in_main_thread()"
    assert stop_waiting(signal.SIGINT, signal.SIGTERM, work=SLEEPING, before=ignoring)[0] == 143


def test_a_program_that_runs_a_job_from_python_answers_its_own_signals() -> None:
    own = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); signals.raise_in_main_thread()"
    assert stop_waiting(signal.SIGTERM, work=SLEEPING, before=own)[:2] == (7, "")


def test_loading_the_command_changes_no_signal() -> None:
    program = (
        "import signal; before = [signal.getsignal(n) for n in (2, 15)]; import pipeline.run, pipeline.signals\n"
        "assert before == [signal.getsignal(n) for n in (2, 15)]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())


@BOTH
def test_what_a_library_had_half_made_when_the_signal_came_says_nothing(sent: signal.Signals, line: str, exit_code: int) -> None:
    half_made = "Half = type('Half', (), {'__del__': lambda self: 1 / 0}); half = Half(); "
    returncode, said, _ = stop_waiting(sent, work=half_made + SLEEPING, answer="del half")
    assert (returncode, said) == (exit_code, line)


@pytest.mark.slow
@BOTH
def test_a_run_stops_within_seconds_while_it_computes_large_images(
    sent: signal.Signals, line: str, exit_code: int, tmp_path: Path
) -> None:
    (tmp_path / "imgs").mkdir()
    for number in range(3):
        Image.fromarray(np.full((64, 64, 3), 50 * number, np.uint8)).save(tmp_path / f"imgs/{number}.png")
    options = ["data.dir=imgs", "network.weights=random", "data.size=2048", "layers=[relu1_1,relu5_4]", "name=run"]
    with subprocess.Popen(
        command(*options, cwd=tmp_path), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        partial = tmp_path / "outputs/run/shards"
        deadline = time.monotonic() + 120
        while not (partial.is_dir() and any(partial.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(3)
        began = time.monotonic()
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    seconds = time.monotonic() - began
    assert process.returncode == exit_code, said
    assert said.endswith(line)
    assert "Traceback" not in said
    assert seconds < 8
    assert partial_files(tmp_path) == []


HANGING = """
import sys, time
from pipeline.images import loader

def hang(record):
    if record.key.startswith("hang"):
        print("hanging", flush=True)
        time.sleep(600)
    return read(record)

read, loader.read_image = loader.read_image, hang
from pipeline.run import main
sys.argv = ["run", *sys.argv[1:]]
main()
"""


@pytest.mark.slow  # as other work of the main thread does
def test_a_read_that_hangs_keeps_nobody_waiting(tmp_path: Path) -> None:
    for name in ("a", "b", "hang", "z"):
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / f"{name}.png")
    options = [f"data.dir={tmp_path}", "data.size=32", "layers=[relu1_1]", "network.weights=random", f"output.dir={tmp_path}/out"]
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, *options], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "hanging\n"
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        seconds = time.monotonic() - began
        said = process.stderr.read()
    assert process.returncode == 143, said
    assert said.endswith(LINE.format("terminated"))
    # At once, and not after the time that a stop in order is given; a busy machine takes its time too.
    assert seconds < 3, seconds

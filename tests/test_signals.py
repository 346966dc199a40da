"""Ctrl-C and SIGTERM: one line, the right exit code, within seconds, whatever the program is doing."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .killed_runs import Moment, call_python, partial_files
from .processes import command, run_python, start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no signals to stop a process by")

ADVICE = "finished shards are kept. Run the command again, with output.existing=resume, to go on."
INTERRUPTED, TERMINATED = f"interrupted: {ADVICE}\n", f"terminated: {ADVICE}\n"
INT, TERM = signal.SIGINT, signal.SIGTERM
# What the main thread of the child does once it hears signals; it never ends by itself.
WAITING = """
import hashlib, signal, sys, threading, time
from pipeline import signals

def answer():
    try:
        print("ready", flush=True)
        {work}
    except KeyboardInterrupt:
        {answer}
        signals.stop()

signals.GRACE_SECONDS = {grace}
signals.install({advice!r})
{before}
answer()
"""
COMPUTING = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
SLEEPING = "time.sleep(600)"


def stop_waiting(
    *sent: signal.Signals,
    work: str = SLEEPING,
    answer: str = "pass",
    grace: float = 600,
    before: str = "signals.raise_in_main_thread()",
) -> tuple[int, str, float]:
    """Gives exit code, stderr and seconds of a child that is sent these signals, 0.1 s apart, at its work."""
    program = WAITING.format(work=work, answer=answer, grace=grace, before=before, advice=ADVICE)
    with start([sys.executable, "-c", program], Path.cwd()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        for number in sent:
            time.sleep(0.1)
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
    return process.returncode, said, time.monotonic() - began


def test_a_signal_that_comes_while_libraries_are_loaded_is_one_line(tmp_path: Path) -> None:
    for module, sent, line in (
        ("hydra", INT, INTERRUPTED),
        ("omegaconf*", TERM, TERMINATED),
        ("pipeline.config", INT, INTERRUPTED),
    ):
        moment = Moment("import", module, 1, sent)
        ended = call_python(tmp_path, ["-m", "pipeline.run", "data.dir=x", "network.weights=random"], tmp_path, moment)
        assert (ended.returncode, ended.stderr) == (moment.exit_code, line)


LOADED = "signals.raise_in_main_thread()"
TIDY = "print('tidied up', file=sys.stderr)"
CLEARING = f"""
        with signals.clearing(lambda: print("cleared", file=sys.stderr)):
            {COMPUTING}""".lstrip()
HALF_MADE = "Half = type('Half', (), {'__del__': lambda self: 1 / 0}); half = Half(); "


@pytest.mark.parametrize(
    ("sent", "settings", "code", "said"),
    [
        ([INT], {"answer": TIDY}, 130, f"tidied up\n{INTERRUPTED}"),
        # A second one does not disturb the answer to the first.
        ([INT, INT, TERM], {"answer": f"time.sleep(0.5); {TIDY}"}, 130, f"tidied up\n{INTERRUPTED}"),
        # A long computation cannot keep the process from ending.
        ([TERM], {"work": COMPUTING, "grace": 0.2}, 143, TERMINATED),
        # What is cut off leaves nothing unfinished.
        ([INT], {"work": CLEARING, "grace": 0.2}, 130, f"cleared\n{INTERRUPTED}"),
        # A signal that is swallowed, as where it comes while the interpreter clears an object away.
        ([TERM], {"work": f"exec('try: {SLEEPING}\\nexcept BaseException: pass'); {SLEEPING}", "grace": 0.2}, 143, TERMINATED),
        # What Python clears away at its end is not waited for.
        ([INT], {"before": f"import atexit; atexit.register(time.sleep, 600); {LOADED}"}, 130, INTERRUPTED),
        # What is ignored by the caller stays ignored.
        ([INT, TERM], {"before": f"signal.signal(2, signal.SIG_IGN); signals.install({ADVICE!r}); {LOADED}"}, 143, TERMINATED),
        # A program that runs a job from Python answers its own signals.
        ([TERM], {"before": f"signal.signal(15, lambda *_: sys.exit(7)); {LOADED}"}, 7, ""),
        # What a library had half made when the signal came says nothing.
        ([INT], {"work": HALF_MADE + SLEEPING, "answer": "del half"}, 130, INTERRUPTED),
    ],
)
def test_a_signal_is_heeded_in_order_and_within_seconds(
    sent: list[signal.Signals], settings: dict[str, Any], code: int, said: str
) -> None:
    found, line, seconds = stop_waiting(*sent, **settings)
    assert (found, line) == (code, said)
    assert seconds < 30


def test_loading_the_command_changes_no_signal() -> None:
    program = (
        "import signal; before = [signal.getsignal(n) for n in (2, 15)]; import pipeline.run, pipeline.signals\n"
        "assert before == [signal.getsignal(n) for n in (2, 15)]"
    )
    assert run_python(program).returncode == 0


@pytest.mark.slow
def test_a_run_stops_within_seconds_while_it_computes_large_images(tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    for number in range(3):
        Image.fromarray(np.full((64, 64, 3), 50 * number, np.uint8)).save(tmp_path / f"imgs/{number}.png")
    options = ["data.dir=imgs", "network.weights=random", "data.size=2048", "layers=[relu1_1,relu5_4]", "name=run"]
    with start(command(*options), tmp_path) as process:
        partial = tmp_path / "outputs/run/shards"
        deadline = time.monotonic() + 120
        while not (partial.is_dir() and any(partial.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(3)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 8
    assert process.returncode == 143, said
    assert said.endswith(TERMINATED)
    assert "Traceback" not in said
    assert partial_files(tmp_path) == []

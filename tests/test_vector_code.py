from __future__ import annotations

import os
import subprocess
import sys

import pytest

TOGETHER = """
import threading
from pipeline.images.passes import compiled_passes
from pipeline.network.kernels import compile_kernels
from pipeline.vector_code import this_processor

makers = [compiled_passes, lambda: compile_kernels(this_processor(), [64])] * 4
together = threading.Barrier(len(makers))
made = {}

def work(number):
    together.wait()
    made.setdefault(makers[number], set()).add(id(makers[number]()))

threads = [threading.Thread(target=work, args=(number,)) for number in range(len(makers))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(made[compiled_passes]) == 1
print("made")
"""


def test_threads_that_want_code_at_once_neither_crash_nor_compile_it_twice() -> None:
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr


FORKED = """
import os, threading
from pipeline.images.passes import compiled_passes

begun = threading.Event()

def work():
    begun.set()
    compiled_passes()

threading.Thread(target=work).start()
begun.wait()
child = os.fork()
if child == 0:
    compiled_passes()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_while_a_thread_compiles_can_compile() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr

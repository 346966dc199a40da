from __future__ import annotations

import subprocess
import sys

TOGETHER = """
import threading
from pipeline.images.passes import compiled_passes
from pipeline.network.kernels import compile_kernels
from pipeline.store.deflate_code import compiled_deflate
from pipeline.vector_code import this_processor

makers = [compiled_passes, compiled_deflate, lambda: compile_kernels(this_processor(), [64])] * 4
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
assert len(made[compiled_passes]) == len(made[compiled_deflate]) == 1
print("made")
"""


def test_threads_that_want_code_at_once_neither_crash_nor_compile_it_twice() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr

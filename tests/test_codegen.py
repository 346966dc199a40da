from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # the program compiles in one thread, and seldom where it is forked

# Each in a process of its own, since what may go wrong is a crash or a child that waits for ever.
TOGETHER = """
import threading
from pipeline.network.winograd.codegen import host_processor
from pipeline.network.winograd.kernels import compile_kernels

together = threading.Barrier(4)
compiled = []

def work():
    together.wait()
    compiled.append(compile_kernels(host_processor(), (64,)))

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(compiled))
"""

FORKED = """
import os, threading
from pipeline.network.winograd.codegen import host_processor
from pipeline.network.winograd.kernels import compile_kernels

begun = threading.Event()

def work():
    begun.set()
    compile_kernels(host_processor(), (64,))

threading.Thread(target=work).start()
begun.wait()
child = os.fork()
if child == 0:
    compile_kernels(host_processor(), (64,))
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


def answer(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads_that_compile_at_once_do_not_crash() -> None:
    assert answer(TOGETHER) == "4"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_while_a_thread_compiles_can_compile() -> None:
    assert answer(FORKED) == "0"

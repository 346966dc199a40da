from __future__ import annotations

import os

import pytest

from .processes import run_python

pytestmark = pytest.mark.slow  # the program compiles in one thread, and seldom where it is forked


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_while_a_thread_compiles_can_compile() -> None:
    assert run_python(FORKED, PYTHONWARNINGS="ignore").stdout == "0\n"

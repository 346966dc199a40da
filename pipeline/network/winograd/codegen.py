"""Machine code for the processor at hand, compiled by LLVM while the program runs.

Compiling takes some tenths of a second, so there is nothing to install, to keep on the disk or to choose from.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

FLOAT = ir.FloatType()
INTEGER = ir.IntType(64)
POINTER = ir.PointerType()
FLOAT_BYTES = 4

_CTYPES: dict[Any, Any] = {FLOAT: ctypes.c_float, INTEGER: ctypes.c_int64, POINTER: ctypes.c_void_p}

# LLVM's types are global to the process, without a lock of their own: two threads that compile at once crash.
COMPILING = threading.Lock()


class Processor(NamedTuple):
    """What decides the shape of the code."""

    name: str  # LLVM's
    features: str  # LLVM's list of what it can do, ``+avx2,-avx512f``
    lanes: int  # floats of a vector register
    rows: int  # of a block of a matrix product whose sums stay in registers
    columns: int  # vectors of a row of that block


@functools.cache
def host_processor() -> Processor:
    """Return the processor at hand, with blocks whose sums, a row of factors and one factor more fill its registers."""
    found = llvm.get_host_cpu_features()
    name, features = llvm.get_host_cpu_name(), found.flatten()
    if found.get("avx512f"):  # 32 registers of 16
        return Processor(name, features, 16, 14, 2)
    if found.get("avx"):  # 16 registers of 8
        return Processor(name, features, 8, 6, 2)
    if found.get("neon"):  # 32 registers of 4
        return Processor(name, features, 4, 7, 4)
    return Processor(name, features, 4, 6, 2)  # 16 registers of 4


class Code:
    """A function without a result and the position in it, with short names for the instructions that kernels need.

    Offsets and strides count floats; vectors need no alignment beyond a float's.

    Args:
        module: Of LLVM's intermediate representation; gets the function.
        name: Of the function.
        arguments: Types: each :data:`FLOAT`, :data:`INTEGER` or :data:`POINTER`.
        lanes: Floats of a vector.
        internal: Whether only other functions of the module call it.
    """

    def __init__(self, module: Any, name: str, arguments: Sequence[Any], lanes: int, *, internal: bool = False) -> None:
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
        if internal:
            self.function.linkage = "internal"
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self.lanes = lanes
        self.vector = ir.VectorType(FLOAT, lanes)

    def at(self, pointer: Any, offset: Any) -> Any:
        """Return a pointer so many floats further."""
        return self.builder.gep(pointer, [integer(offset)], source_etype=FLOAT)

    def load(self, pointer: Any, offset: Any = 0) -> Any:
        """Load a vector."""
        return self.builder.load(self.at(pointer, offset), typ=self.vector, align=FLOAT_BYTES)

    def store(self, value: Any, pointer: Any, offset: Any = 0) -> None:
        """Store a vector."""
        self.builder.store(value, self.at(pointer, offset), align=FLOAT_BYTES)

    def load_broadcast(self, pointer: Any, offset: Any = 0) -> Any:
        """Load one float into all lanes."""
        return self.broadcast(self.builder.load(self.at(pointer, offset), typ=FLOAT, align=FLOAT_BYTES))

    def broadcast(self, value: Any) -> Any:
        """Return a vector with this float in all lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        single = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        first = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(single, undefined, first)

    def constant(self, value: float) -> Any:
        """Return a vector with this number in all lanes."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def multiply_add(self, factor: Any, other: Any, addend: Any) -> Any:
        """Return factor * other + addend, rounded once where the processor can and twice where it cannot."""
        name = f"llvm.fmuladd.v{self.lanes}f32"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(self.vector, [self.vector] * 3), name)
        return self.builder.call(function, [factor, other, addend])

    def maximum(self, value: Any, floor: Any) -> Any:
        """Return the larger of each lane; a NaN of the first stays."""
        return self.builder.select(self.builder.fcmp_ordered("<", value, floor), floor, value)

    def smaller(self, left: Any, right: Any) -> Any:
        """Return the smaller of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", left, right), left, right)

    def end(self) -> Any:
        """Return from the function; return it, to be called by others."""
        self.builder.ret_void()
        return self.function

    def all_of(self, *conditions: Any) -> Any:
        """Return whether all conditions hold."""
        return functools.reduce(self.builder.and_, conditions)

    @contextmanager
    def loop(self, start: Any, stop: Any, step: Any = 1) -> Iterator[Any]:
        """Repeat what is written inside, for an integer from start until below stop; yield the integer."""
        builder = self.builder
        before = builder.block
        head, body, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        counter = builder.phi(INTEGER)
        counter.add_incoming(integer(start), before)
        builder.cbranch(builder.icmp_signed("<", counter, integer(stop)), body, after)
        builder.position_at_end(body)
        yield counter
        following = builder.add(counter, integer(step))
        counter.add_incoming(following, builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    def accumulate(self, count: int, step: int, sums: Sequence[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """Repeat ``sums = body(counter, sums)`` for a counter from 0 until below a positive count; sums stay in registers."""
        builder = self.builder
        before = builder.block
        inside, after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(inside)
        builder.position_at_end(inside)
        counter = builder.phi(INTEGER)
        counter.add_incoming(integer(0), before)
        carried = [builder.phi(start.type) for start in sums]
        for phi, start in zip(carried, sums, strict=True):
            phi.add_incoming(start, before)
        results = body(counter, list(carried))
        following = builder.add(counter, integer(step))
        counter.add_incoming(following, builder.block)
        for phi, result in zip(carried, results, strict=True):
            phi.add_incoming(result, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, integer(count)), inside, after)
        builder.position_at_end(after)
        return results


def integer(value: Any) -> Any:
    """Return a Python integer as a 64-bit constant of the code; anything else as it is."""
    return ir.Constant(INTEGER, value) if isinstance(value, int) else value


class MachineCode:
    """Compiled functions, by name, to be called with addresses and numbers. Calls let other threads of Python run.

    Args:
        module: Of LLVM's intermediate representation.
        processor: Which it is compiled for.
    """

    def __init__(self, module: Any, processor: Processor) -> None:
        with COMPILING:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            target = llvm.Target.from_default_triple()
            machine = target.create_target_machine(cpu=processor.name, features=processor.features, opt=3, jit=True)
            module.triple = machine.triple
            module.data_layout = str(machine.target_data)
            parsed = llvm.parse_assembly(str(module))
            # Holds the memory in which the code lies.
            self._engine = llvm.create_mcjit_compiler(parsed, machine)
            self._engine.finalize_object()
        self._functions: dict[str, Callable[..., None]] = {}
        for function in module.functions:
            if not function.is_declaration and function.linkage != "internal":
                prototype = ctypes.CFUNCTYPE(None, *(_CTYPES[argument.type] for argument in function.args))
                self._functions[function.name] = prototype(self._engine.get_function_address(function.name))

    def __getitem__(self, name: str) -> Callable[..., None]:
        return self._functions[name]

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


class Value:
    """A value in generated code: a number, a vector of floats or a pointer to floats. Operators on it are instructions.

    A pointer plus a number is so many floats further. Python's numbers are constants.
    """

    def __init__(self, builder: ir.IRBuilder, raw: Any) -> None:
        self.builder, self.raw = builder, raw

    def __add__(self, other: Any) -> Value:
        if self.raw.type == POINTER:
            return Value(self.builder, self.builder.gep(self.raw, [raw_value(other)], source_etype=FLOAT))
        return self._arithmetic("add", other)

    def __sub__(self, other: Any) -> Value:
        return self._arithmetic("sub", other)

    def __mul__(self, other: Any) -> Value:
        return self._arithmetic("mul", other)

    def __floordiv__(self, other: Any) -> Value:
        return self._arithmetic("sdiv", other)

    def __and__(self, other: Value) -> Value:
        return self._arithmetic("and_", other)

    def __lt__(self, other: Any) -> Value:
        return self._comparison("<", other)

    def __le__(self, other: Any) -> Value:
        return self._comparison("<=", other)

    def __ge__(self, other: Any) -> Value:
        return self._comparison(">=", other)

    def is_in(self, stop: Value) -> Value:
        """Return whether an integer is one of 0 to below stop."""
        # Without a sign what is below zero is large.
        return Value(self.builder, self.builder.icmp_unsigned("<", self.raw, stop.raw))

    def _arithmetic(self, name: str, other: Any) -> Value:
        name = f"f{name}" if isinstance(self.raw.type, ir.VectorType) else name
        return Value(self.builder, getattr(self.builder, name)(self.raw, raw_value(other)))

    def _comparison(self, sign: str, other: Any) -> Value:
        return Value(self.builder, self.builder.icmp_signed(sign, self.raw, raw_value(other)))


def raw_value(value: Any) -> Any:
    """Return what LLVM takes for a value or a Python number."""
    if isinstance(value, (int, float)):
        return ir.Constant(INTEGER if isinstance(value, int) else FLOAT, value)
    return value.raw if isinstance(value, Value) else value


class Code:
    """A function without a result and the position in it. Vectors need no alignment beyond a float's.

    Args:
        module: Of LLVM's intermediate representation; gets the function.
        name: Of the function.
        arguments: Types: each :data:`FLOAT`, :data:`INTEGER` or :data:`POINTER`; their values are the attribute of this name.
        lanes: Floats of a vector.
        internal: Whether only other functions of the module call it.
    """

    def __init__(self, module: Any, name: str, arguments: Sequence[Any], lanes: int, *, internal: bool = False) -> None:
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
        if internal:
            self.function.linkage = "internal"
        self.builder = ir.IRBuilder(self.function.append_basic_block())
        self.arguments = [Value(self.builder, argument) for argument in self.function.args]
        self.lanes = lanes
        self.vector = ir.VectorType(FLOAT, lanes)

    def load(self, pointer: Value) -> Value:
        """Load a vector."""
        return Value(self.builder, self.builder.load(pointer.raw, typ=self.vector, align=FLOAT_BYTES))

    def store(self, value: Value, pointer: Value) -> None:
        """Store a vector."""
        self.builder.store(value.raw, pointer.raw, align=FLOAT_BYTES)

    def load_broadcast(self, pointer: Value) -> Value:
        """Load one float into all lanes."""
        return self.broadcast(Value(self.builder, self.builder.load(pointer.raw, typ=FLOAT, align=FLOAT_BYTES)))

    def broadcast(self, value: Value) -> Value:
        """Return a vector with this float in all lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        single = self.builder.insert_element(undefined, value.raw, ir.Constant(ir.IntType(32), 0))
        first = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return Value(self.builder, self.builder.shuffle_vector(single, undefined, first))

    def constant(self, value: float) -> Value:
        """Return a vector with this number in all lanes."""
        return Value(self.builder, ir.Constant(self.vector, [value] * self.lanes))

    def multiply_add(self, factor: Value, other: Value, addend: Value) -> Value:
        """Return factor * other + addend, rounded once where the processor can and twice where it cannot."""
        name = f"llvm.fmuladd.v{self.lanes}f32"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(self.vector, [self.vector] * 3), name)
        return Value(self.builder, self.builder.call(function, [factor.raw, other.raw, addend.raw]))

    def maximum(self, value: Value, floor: Value) -> Value:
        """Return the larger of each lane; a NaN of the first stays."""
        is_below = self.builder.fcmp_ordered("<", value.raw, floor.raw)
        return Value(self.builder, self.builder.select(is_below, floor.raw, value.raw))

    def choose(self, condition: Value, value: Any, other: Any) -> Value:
        """Return the first where the condition holds, else the other."""
        return Value(self.builder, self.builder.select(condition.raw, raw_value(value), raw_value(other)))

    def smaller(self, left: Value, right: Any) -> Value:
        """Return the smaller of two integers."""
        return self.choose(left < right, left, right)

    def call(self, function: Any, *arguments: Any) -> None:
        """Call another function."""
        self.builder.call(function, [raw_value(argument) for argument in arguments])

    def branches(self, condition: Value) -> Any:
        """Return a context that gives two, for what is done where the condition holds, and for what else is."""
        return self.builder.if_else(condition.raw)

    def end(self) -> Any:
        """Return from the function; return it, to be called by others."""
        self.builder.ret_void()
        return self.function

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int = 1) -> Iterator[Value]:
        """Repeat what is written inside, for an integer from start until below stop; yield the integer."""
        builder = self.builder
        before = builder.block
        head, body, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        counter = builder.phi(INTEGER)
        counter.add_incoming(raw_value(start), before)
        value = Value(builder, counter)
        builder.cbranch((value < stop).raw, body, after)
        builder.position_at_end(body)
        yield value
        counter.add_incoming((value + step).raw, builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    def accumulate(
        self, count: Any, step: int, sums: Sequence[Value], body: Callable[[Value, list[Value]], list[Value]]
    ) -> list[Value]:
        """Repeat ``sums = body(counter, sums)`` for a counter from 0 until below a positive count; sums stay in registers."""
        builder = self.builder
        before = builder.block
        inside, after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(inside)
        builder.position_at_end(inside)
        counter, *carried = (builder.phi(type_) for type_ in (INTEGER, *(start.raw.type for start in sums)))
        results = body(Value(builder, counter), [Value(builder, phi) for phi in carried])
        following = Value(builder, counter) + step
        for phi, start, result in zip((counter, *carried), (0, *sums), (following, *results), strict=True):
            phi.add_incoming(raw_value(start), before)
            phi.add_incoming(raw_value(result), builder.block)
        builder.cbranch((following < count).raw, inside, after)
        builder.position_at_end(after)
        return results


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

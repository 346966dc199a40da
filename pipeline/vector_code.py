"""Vector code for this machine's processor, made while the program runs: LLVM in the words of this house.

Below the wings: :mod:`~pipeline.images.passes` and :mod:`~pipeline.network.kernels` say what is computed. Code is made for the
processor at hand in some tenths of a second, so there is nothing to install, to cache or to choose from.
"""

from __future__ import annotations

import copy
import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir

# One lock for all that compiles in this process.
from .network.winograd.codegen import COMPILING as _COMPILING

FLOAT = ir.FloatType()
INTEGER = ir.IntType(64)
POINTER = ir.PointerType()
FLOAT_BYTES = 4  # alignment of what may begin anywhere


class Processor(NamedTuple):
    """What decides the shape of the code.

    Attributes:
        name: LLVM's name of the processor.
        features: LLVM's list of what it can do, ``+avx2,-avx512f``.
        lanes: Floats of a vector register.
        rows: Rows of a block of a matrix product whose sums stay in registers.
        columns: Vectors of a row of that block.
    """

    name: str
    features: str
    lanes: int
    rows: int
    columns: int


@functools.cache
def this_processor() -> Processor:
    """Gives the processor at hand: sums of a block, a row of factors and one factor more fill the registers."""
    # A child that was forked while another thread asks would find LLVM's own lock taken for ever.
    with _COMPILING:
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
    """A place in a function that is being written: where the next instruction goes, with short names for what kernels need.

    Offsets and strides count floats.

    Args:
        function: Empty; the place is its beginning.
        lanes: Floats of a vector.
    """

    def __init__(self, function: Any, lanes: int) -> None:
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.lanes = lanes
        self.vector = ir.VectorType(FLOAT, lanes)

    def at(self, pointer: Any, offset: Any) -> Any:
        """Gives a pointer so many floats further."""
        return self.builder.gep(pointer, [integer(offset)], source_etype=FLOAT)

    def load(self, pointer: Any, offset: Any = 0) -> Any:
        """Loads a vector."""
        return self.builder.load(self.at(pointer, offset), typ=self.vector, align=FLOAT_BYTES)

    def store(self, value: Any, pointer: Any, offset: Any = 0) -> None:
        """Stores a vector."""
        self.builder.store(value, self.at(pointer, offset), align=FLOAT_BYTES)

    def load_bytes(self, pointer: Any, offset: Any = 0) -> Any:
        """Loads as many bytes, as floats; the offset counts bytes."""
        byte = ir.IntType(8)
        place = self.builder.gep(pointer, [integer(offset)], source_etype=byte)
        return self.builder.uitofp(self.builder.load(place, typ=ir.VectorType(byte, self.lanes), align=1), self.vector)

    def store_bytes(self, value: Any, pointer: Any, offset: Any = 0) -> None:
        """Stores floats from 0 to 255 as bytes, rounded, halves up; the offset counts bytes."""
        byte = ir.IntType(8)
        rounded = self.builder.fptoui(self.builder.fadd(value, self.constant(0.5)), ir.VectorType(byte, self.lanes))
        self.builder.store(rounded, self.builder.gep(pointer, [integer(offset)], source_etype=byte), align=1)

    def load_everywhere(self, pointer: Any, offset: Any = 0) -> Any:
        """Loads one float into all lanes."""
        return self.everywhere(self.builder.load(self.at(pointer, offset), typ=FLOAT, align=FLOAT_BYTES))

    def everywhere(self, value: Any) -> Any:
        """Gives a vector with this float in all lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        single = self.builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(
            single, undefined, ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        )

    def of_lanes(self, lanes: int) -> Code:
        """Gives the same place for vectors of so many floats."""
        other = copy.copy(self)
        other.lanes, other.vector = lanes, ir.VectorType(FLOAT, lanes)
        return other

    def load_integer(self, pointer: Any, place: Any) -> Any:
        """Loads one of the 32-bit integers of an array."""
        bits = ir.IntType(32)
        return self.builder.sext(
            self.builder.load(self.builder.gep(pointer, [integer(place)], source_etype=bits), typ=bits), INTEGER
        )

    def constant(self, value: float) -> Any:
        """Gives a vector with this number in all lanes."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def multiply_add(self, factor: Any, other: Any, addend: Any) -> Any:
        """Gives factor * other + addend, rounded once where the processor can and twice where it cannot."""
        name = f"llvm.fmuladd.v{self.lanes}f32"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(self.vector, [self.vector] * 3), name)
        return self.builder.call(function, [factor, other, addend])

    def largest(self, value: Any, floor: Any) -> Any:
        """Gives the larger of each lane; a NaN of the first stays."""
        return self.builder.select(self.builder.fcmp_ordered("<", value, floor), floor, value)

    def smallest(self, value: Any, ceiling: Any) -> Any:
        """Gives the smaller of each lane; a NaN of the first stays."""
        return self.builder.select(self.builder.fcmp_ordered(">", value, ceiling), ceiling, value)

    def smaller(self, left: Any, right: Any) -> Any:
        """Gives the smaller of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", left, right), left, right)

    def every(self, *conditions: Any) -> Any:
        """Gives whether all conditions hold."""
        result = conditions[0]
        for condition in conditions[1:]:
            result = self.builder.and_(result, condition)
        return result

    @contextmanager
    def loop(self, start: Any, stop: Any, step: Any = 1) -> Iterator[Any]:
        """Repeats what is written inside, for an integer from start until below stop; gives the integer."""
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

    def every_float(self, count: Any, body: Callable[[Code, Any], None]) -> None:
        """Writes a body for vectors as long as they fit, and once more for what is left; the body gets code and place."""
        whole = self.builder.sub(integer(count), self.builder.srem(integer(count), integer(self.lanes)))
        with self.loop(0, whole, self.lanes) as place:
            body(self, place)
        with self.loop(whole, count) as place:
            body(self.of_lanes(1), place)

    def accumulate(self, count: Any, step: int, sums: Sequence[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """Repeats ``sums = body(counter, sums)`` for a counter from 0 until below a positive count; sums stay in registers.

        Sums are of any type: vectors, floats, integers.
        """
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
    """Gives a number of Python as a 64-bit integer of the code; others as they are."""
    return ir.Constant(INTEGER, value) if isinstance(value, int) else value


def new_function(module: Any, name: str, arguments: Sequence[Any]) -> Any:
    """Adds a function without a result to a module."""
    return ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)


def compiled_once(make: Callable[[], MachineCode]) -> Callable[[], MachineCode]:
    """Gives what compiles at its first call, in one thread however many call it, and gives the same code ever after."""
    made: list[MachineCode] = []

    @functools.wraps(make)
    def give() -> MachineCode:
        if not made:
            with _COMPILING:
                if not made:
                    made.append(make())
        return made[0]

    return give


class MachineCode:
    """Compiled functions, to be called with addresses and integers. Calls let other threads of Python run.

    Args:
        module: Of LLVM's intermediate representation.
        processor: Which it is made for.
        functions: Name -> its arguments, as they were given to :func:`new_function`.
    """

    def __init__(self, module: Any, processor: Processor, functions: Mapping[str, Sequence[Any]]) -> None:
        with _COMPILING:
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
        self._functions = {name: self._callable(name, arguments) for name, arguments in functions.items()}

    def __getitem__(self, name: str) -> Callable[..., None]:
        """Gives a function."""
        return self._functions[name]

    def _callable(self, name: str, arguments: Sequence[Any]) -> Callable[..., None]:
        types = [
            ctypes.c_void_p if kind is POINTER else ctypes.c_int64 if kind is INTEGER else ctypes.c_float for kind in arguments
        ]
        return ctypes.CFUNCTYPE(None, *types)(self._engine.get_function_address(name))

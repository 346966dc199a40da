"""Machine code of integers and memory: what :class:`~pipeline.vector_code.Code` is to floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, integer

BYTE = ir.IntType(8)
WORD = ir.IntType(32)


def _operation(name: str) -> Callable[[Any, Any, Any], Any]:
    def operate(self: IntegerCode, left: Any, right: Any) -> Any:
        return getattr(self.builder, name)(integer(left), integer(right))

    return operate


def private_function(module: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    """Adds a function to a module that only its others call."""
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    function.linkage = "internal"
    return function


class IntegerCode:
    """A place in a function that is being written. Wherever a 64-bit integer is expected, a number of Python will do.

    Args:
        function: Empty; the place is its beginning.
    """

    def __init__(self, function: Any) -> None:
        self.builder = ir.IRBuilder(function.append_basic_block())

    add, sub, mul = _operation("add"), _operation("sub"), _operation("mul")
    and_, or_, xor = _operation("and_"), _operation("or_"), _operation("xor")
    shl, lshr, ashr = _operation("shl"), _operation("lshr"), _operation("ashr")

    def at(self, pointer: Any, place: Any, kind: Any = INTEGER) -> Any:
        """Gives a pointer so many integers of a kind further."""
        return self.builder.gep(pointer, [integer(place)], source_etype=kind)

    def pointer(self, address: Any) -> Any:
        """Gives a pointer to an address."""
        return self.builder.inttoptr(address, POINTER)

    def load(self, pointer: Any, place: Any) -> Any:
        """Loads a 64-bit integer of an array."""
        return self.builder.load(self.at(pointer, place), typ=INTEGER, align=8)

    def store(self, value: Any, pointer: Any, place: Any) -> None:
        """Stores a 64-bit integer of an array."""
        self.builder.store(integer(value), self.at(pointer, place), align=8)

    def load_from(self, address: Any, kind: Any = INTEGER) -> Any:
        """Loads a little-endian integer that may begin anywhere, without a sign."""
        value = self.builder.load(self.pointer(address), typ=kind, align=1)
        return value if kind is INTEGER else self.builder.zext(value, INTEGER)

    def is_(self, left: Any, how: str, right: Any) -> Any:
        """Compares numbers with their signs."""
        return self.builder.icmp_signed(how, integer(left), integer(right))

    def every(self, *conditions: Any) -> Any:
        """Gives whether all conditions hold; all are looked at."""
        result = conditions[0]
        for condition in conditions[1:]:
            result = self.builder.and_(result, condition)
        return result

    def select(self, condition: Any, value: Any, other: Any) -> Any:
        """Gives one of two numbers."""
        return self.builder.select(condition, integer(value), integer(other))

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Does what is written inside if the condition holds; it may leave the function."""
        inside, after = self.builder.append_basic_block(), self.builder.append_basic_block()
        self.builder.cbranch(condition, inside, after)
        self.builder.position_at_end(inside)
        yield
        if not self.builder.block.is_terminated:
            self.builder.branch(after)
        self.builder.position_at_end(after)

    def repeat(
        self,
        carried: Sequence[Any],
        holds: Callable[..., Any],
        body: Callable[..., Sequence[Any]],
        *,
        at_least_once: bool = False,
    ) -> list[Any]:
        """Repeats ``carried = body(*carried)`` while ``holds(*carried)``; gives what it was at last.

        Args:
            carried: Values of any type, numbers of Python too.
            holds: Gives the condition.
            body: Gives as many values, of the same types.
            at_least_once: Ask only after the body.
        """
        builder = self.builder
        carried = [integer(value) for value in carried]
        before = builder.block
        head = before if at_least_once else builder.append_basic_block()
        inside, after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(inside if at_least_once else head)
        begin = inside if at_least_once else head
        builder.position_at_end(begin)
        phis = [builder.phi(value.type) for value in carried]
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, before)
        if not at_least_once:
            builder.cbranch(holds(*phis), inside, after)
            builder.position_at_end(inside)
        following = [integer(value) for value in body(*phis)]
        for phi, value in zip(phis, following, strict=True):
            phi.add_incoming(value, builder.block)
        if at_least_once:
            builder.cbranch(holds(*following), inside, after)
        else:
            builder.branch(head)
        builder.position_at_end(after)
        return following if at_least_once else phis

"""Machine code of SHA-256 for one file or for two at once, where a processor has instructions for it.

Each step of a digest waits for the one before, so a processor that could begin a step in every second cycle begins one in every
fourth. The steps of two digests, in turns, take no longer than those of one.

Source: FIPS 180-4 (Secure Hash Standard), section 6.2; Intel, "Intel SHA Extensions", 2013, for the order of the words.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir

from ..vector_code import INTEGER, POINTER, Code, MachineCode, Processor, compiled_once, integer, new_function, this_processor

BLOCK_BYTES = 64
# Source: FIPS 180-4, 4.2.2 and 5.3.3: of the cube roots of the first 64 primes, and of the square roots of the first 8.
ROUNDS = (
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2,
)  # fmt: skip
START = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
# Places of the words a to h in a state as the code has it: two vectors, the last word of each first.
ORDER = (5, 4, 1, 0, 7, 6, 3, 2)

_LANES = 4
_WORD = ir.IntType(32)
_VECTOR = ir.VectorType(_WORD, _LANES)
# Of each file its state (8 words in ORDER) and its bytes; whole blocks, of each.
_ARGUMENTS = {"sha256_one": [POINTER, POINTER, INTEGER], "sha256_two": [POINTER, POINTER, POINTER, POINTER, INTEGER]}


def has_instructions(processor: Processor) -> bool:
    """Tells whether a processor has what the code is made of."""
    return {"+sha", "+ssse3"} <= set(processor.features.split(","))


@compiled_once
def compiled_sha256() -> MachineCode:
    """Gives ``sha256_one`` and ``sha256_two``, which take blocks of so many files into their states."""
    processor, module = this_processor(), ir.Module()
    for name, arguments in _ARGUMENTS.items():
        _add(module, name, arguments)
    return MachineCode(module, processor, _ARGUMENTS)


def _add(module: Any, name: str, arguments: list[Any]) -> None:
    function = new_function(module, name, arguments)
    *files, blocks = function.args
    stored, data = files[::2], files[1::2]
    code = Code(function, 1)
    builder = code.builder
    steps = _Steps(builder)

    def block(number: Any, states: list[Any]) -> list[Any]:
        place = builder.mul(number, integer(BLOCK_BYTES // 4))
        words = [
            [steps.message(source, builder.add(place, integer(_LANES * part))) for part in range(BLOCK_BYTES // 4 // _LANES)]
            for source in data
        ]
        now = [states[first : first + 2] for first in range(0, len(states), 2)]
        for part in range(len(ROUNDS) // _LANES):
            # In turns.
            for of_file, state in zip(words, now, strict=True):
                if part >= len(of_file):
                    of_file.append(steps.further(of_file[-4:]))
                steps.four_rounds(state, of_file[part], ROUNDS[_LANES * part : _LANES * (part + 1)])
        return [builder.add(before, after) for before, after in zip(states, itertools.chain(*now), strict=True)]

    begun = [steps.load(state, place) for state in stored for place in (0, _LANES)]
    results = code.accumulate(blocks, 1, begun, block)
    for number, value in enumerate(results):
        steps.store(value, stored[number // 2], _LANES * (number % 2))
    builder.ret_void()


class _Steps:
    """What a digest is made of, four words at a time."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._instructions: dict[str, Any] = {}

    def load(self, pointer: Any, place: Any) -> Any:
        where = self._builder.gep(pointer, [integer(place)], source_etype=_WORD)
        return self._builder.load(where, typ=_VECTOR, align=1)

    def store(self, value: Any, pointer: Any, place: Any) -> None:
        self._builder.store(value, self._builder.gep(pointer, [integer(place)], source_etype=_WORD), align=1)

    def message(self, data: Any, place: Any) -> Any:
        """Loads four words of a file, highest byte first."""
        return self._call("llvm.bswap.v4i32", self.load(data, place))

    def further(self, before: list[Any]) -> Any:
        """Gives the next four words of the schedule from the sixteen before."""
        builder = self._builder
        shifted = self._choose(before[2], before[3], (1, 2, 3, 4))
        total = builder.add(self._call("llvm.x86.sha256msg1", before[0], before[1]), shifted)
        return self._call("llvm.x86.sha256msg2", total, before[3])

    def four_rounds(self, state: list[Any], words: Any, constants: tuple[int, ...]) -> None:
        builder = self._builder
        added = builder.add(words, ir.Constant(_VECTOR, constants))
        high = self._choose(added, added, (2, 3, 0, 0))
        state[1] = self._call("llvm.x86.sha256rnds2", state[1], state[0], added)
        state[0] = self._call("llvm.x86.sha256rnds2", state[0], state[1], high)

    def _choose(self, first: Any, second: Any, places: tuple[int, ...]) -> Any:
        return self._builder.shuffle_vector(first, second, ir.Constant(_VECTOR, places))

    def _call(self, name: str, *operands: Any) -> Any:
        module = self._builder.module
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(operands))
        return self._builder.call(module.globals.get(name) or ir.Function(module, kind, name), operands)

"""3 x 3 convolutions of the VGG networks on a CPU, by Winograd's algorithm in machine code generated for the processor at hand.

codegen (LLVM) -> kernels (what is generated) -> convolution (a strip of a map in one thread) -> engine (all threads, segments)
"""

from .engine import Pending, prepare_segments

__all__ = ["Pending", "prepare_segments"]

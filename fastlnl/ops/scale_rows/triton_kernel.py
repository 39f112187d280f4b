"""scale_rows_ on the GPU: a program reads its factor first and leaves at once if it is 1."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def scale_rows_kernel(dlogits, factor, constant, C: tl.constexpr, PER_ROW: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(factor + row * PER_ROW) * constant
    if scale != 1.0:
        for start in range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            cells = dlogits + row * C + columns
            values = tl.load(cells, mask=columns < C, other=0.0).to(tl.float32)
            tl.store(cells, values * scale, mask=columns < C)


def scale_rows(dlogits: Tensor, factor: Tensor, constant: float) -> None:
    batch, classes = dlogits.shape
    if batch > 0:
        block = min(4096, triton.next_power_of_2(classes))
        scale_rows_kernel[(batch,)](dlogits, factor, constant, C=classes, PER_ROW=int(factor.dim() > 0), BLOCK=block)

"""mixmatch_rows on the CPU: up to three sweeps over a row that the first one brings into the cache."""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import pages, team
from fastlnl.cpu.native import as_float32, take
from fastlnl.cpu.native import keep as keep_alive
from fastlnl.cpu.rows import CHUNK, largest_between, softmax_target_sums
from fastlnl.cpu.simd import WIDTH, fma, load, load_first, only_first, splat, store, store_first, total
from fastlnl.ops.class_prior import ClassPrior
from fastlnl.ops.mixmatch_rows import MixMatchRows

SERIAL_BELOW = 1 << 18  # elements
CHUNK_ELEMENTS = 1 << 14
_f = np.float32
_ZERO = _f(0.0)


@njit
def inner_products(scratch, columns, scale, target, ratio):
    """sum (p - t)^2, <p, p - t> and <p, ratio>; without a ratio the last is 0."""
    s_square, s_inner, s_ratio, scale_ = 0.0, 0.0, 0.0, splat(_f(scale))
    for start in range(0, columns, CHUNK):
        stop = min(columns, start + CHUNK)
        whole = stop - (stop - start) % WIDTH
        v_square = splat(_ZERO)
        v_inner, v_ratio = v_square, v_square
        for j in range(start, whole, WIDTH):
            p = scale_ * load(scratch, j)
            away = p - load(target, j)
            v_square, v_inner = fma(away, away, v_square), fma(p, away, v_inner)
            if ratio != 0:
                v_ratio = fma(p, load(ratio, j), v_ratio)
        if whole < stop:
            count = stop - whole
            p = only_first(scale_ * load(scratch, whole), count)
            away = p - load_first(target, whole, count, _ZERO)
            v_square, v_inner = fma(away, away, v_square), fma(p, away, v_inner)
            if ratio != 0:
                v_ratio = fma(p, load_first(ratio, whole, count, _ZERO), v_ratio)
        s_square, s_inner, s_ratio = s_square + total(v_square), s_inner + total(v_inner), s_ratio + total(v_ratio)
    return s_square, s_inner, s_ratio


@njit
def write_gradient(scratch, columns, scale, target, ratio, gradient, level, slope, pull, hard):
    """gradient = p (level + slope (p - t) - pull ratio) - hard t."""
    scale_, level_, slope_ = splat(_f(scale)), splat(_f(level)), splat(_f(slope))
    pull_, hard_ = splat(_f(-pull)), splat(_f(-hard))
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        p, t = scale_ * load(scratch, j), load(target, j)
        factor = fma(slope_, p - t, level_)
        if ratio != 0:
            factor = fma(pull_, load(ratio, j), factor)
        store(gradient, j, fma(p, factor, hard_ * t))
    if whole < columns:
        count = columns - whole
        p, t = scale_ * load(scratch, whole), load_first(target, whole, count, _ZERO)
        factor = fma(slope_, p - t, level_)
        if ratio != 0:
            factor = fma(pull_, load_first(ratio, whole, count, _ZERO), factor)
        store_first(gradient, whole, count, fma(p, factor, hard_ * t))


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,float64,float64,int64,int64,float64,float64,float64,int64,int64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
def mixmatch_kernel(cursor, chunk, batch, columns, logits, stride, target, labelled, each, soft, terms_, ratio,
                    prior_weight, pull, grad_scale, loss_, dlogits):  # fmt: skip
    """`each`: factor of a labelled row's loss, `soft` of an unlabelled one's, `pull` of the prior's gradient."""
    loss, terms, scratch = as_float32(loss_), as_float32(terms_), np.empty(columns + WIDTH, np.float32)
    e = scratch.ctypes.data
    while True:
        begin = take(cursor, chunk)
        if begin == 0:
            share = 0.0
            for c in range(columns if terms_ != 0 else 0):
                share += terms[c]
            loss[batch] = _f(prior_weight * share)
        if begin >= batch:
            break
        for b in range(begin, min(begin + chunk, batch)):
            z, t, dz = logits + 4 * b * stride, target + 4 * b * columns, dlogits + 4 * b * columns
            s_e, _, s_x, s_t, s_tx, _, _ = softmax_target_sums(z, columns, largest_between(z, 0, columns), e, t)
            scale, log_sum, nan = 1.0 / s_e, math.log(s_e), 0.0 * (s_e + s_x)
            square, inner, toward = 0.0, 0.0, 0.0
            if b >= labelled or ratio != 0:
                square, inner, toward = inner_products(e, columns, scale, t, ratio)
            if b < labelled:
                loss[b] = _f(each * (log_sum * s_t - s_tx) + nan)
                level, slope, hard = each * s_t, 0.0, each
            else:
                loss[b] = _f(soft * square + nan)
                level, slope, hard = -2.0 * soft * inner, 2.0 * soft, 0.0
            g = grad_scale + nan
            write_gradient(e, columns, scale, t, ratio, dz, g * (level + pull * toward), g * slope, g * pull, g * hard)
    keep_alive(scratch)


def mixmatch_rows(
    logits: Tensor, target: Tensor, labelled: int, unlabeled_weight: float | Tensor, prior: ClassPrior | None,
    prior_weight: float, grad_scale: float,
) -> MixMatchRows:  # fmt: skip
    z = logits if logits.dtype == torch.float32 else logits.float()
    z = z if z.stride(1) == 1 else z.contiguous()
    batch, classes = z.shape
    loss, dlogits = torch.empty(batch + 1), pages.empty(batch, classes)
    soft = float(unlabeled_weight) / (max(batch - labelled, 1) * classes)  # lies in the host's memory
    terms_, ratio_ = (0, 0) if prior is None else (prior.terms.data_ptr(), prior.ratio.data_ptr())
    run = team.alone if z.numel() < SERIAL_BELOW else team.team.run
    run(
        mixmatch_kernel, max(1, CHUNK_ELEMENTS // classes), batch, classes, z.data_ptr(), z.stride(0),
        target.data_ptr(), labelled, 1.0 / max(labelled, 1), soft, terms_, ratio_, prior_weight,
        prior_weight / max(batch, 1), grad_scale, loss.data_ptr(), dlogits.data_ptr(),
    )  # fmt: skip
    return MixMatchRows(loss, dlogits.to(logits.dtype))

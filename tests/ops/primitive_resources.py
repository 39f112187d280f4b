"""Registers and shared memory of the compiled primitives beside the row pass: `primitive_resources.json`.

Triton compiles for a GPU that is not there, so the table is made and checked anywhere:

python tests/ops/primitive_resources.py [90]       print what the kernels need now (on this capability only)
python tests/ops/primitive_resources.py --update   and write it to primitive_resources.json
"""

import os
import sys
from itertools import product
from pathlib import Path

from mixmatch_resources import mixmatch_cases
from triton_resources import CAPABILITIES, as_text, compile_kernel, usage_of

TABLE = Path(__file__).with_suffix(".json")
TYPES = {
    **dict.fromkeys(("x", "out"), "*fp32"),
    **dict.fromkeys(("group", "tables", "left_out", "count", "offset", "info"), "*i64"),
    **dict.fromkeys(("limits", "mean", "found", "value", "start_", "draw", "fitted", "odds", "alpha", "beta"), "*fp64"),
    **dict.fromkeys(("n", "num_groups", "copies", "max_iter"), "i32"),
    "keys": "*i32",
    **dict.fromkeys(("cuts", "at"), "*fp64"),
    **dict.fromkeys(("total", "bin_count", "counts"), "*i64"),
}


def cases():
    """Every kernel as it is launched: (name, kernel, constants, other types)."""
    yield from mixture_cases()
    yield from selection_cases()
    yield from dynamics_cases()
    yield from augment_cases()
    yield from two_view_cases()
    yield from mixmatch_cases()


def two_view_cases():
    from fastlnl.ops.two_view_loss import triton_kernel as two_view

    types = dict.fromkeys(("weak", "strong", "table", "weights", "terms", "dlogits"), "*fp32") | {"wrong_count": "*i32"}
    types |= {"depth": "i32", "grad_scale": "fp32"}
    for classes in (10, 100, 1000, 4096, 21841):
        launch = two_view.tile_launch if classes <= two_view.TILE_COLUMNS else two_view.wide_launch
        kernel, _, shape = launch(128, classes)
        constants = shape | {"C": classes, "WEAK_STRIDE": classes, "STRONG_STRIDE": classes, "BY_CLASS": True}
        for name in ("PLAIN", "SAMPLE", "MEASURE", "COUPLED"):
            mode = getattr(two_view, name).value
            absent = {} if mode >= two_view.MEASURE.value else {"weights": None, "terms": None}
            if name in ("PLAIN", "COUPLED") or classes == 100:
                modes = {"BEFORE": True, "MODE": mode}
                yield f"two_view_loss, {classes}, {name.lower()}", kernel, constants | modes | absent, types


def augment_cases():
    from fastlnl.ops.augment_batch import triton_kernel as augment
    from fastlnl.ops.random_words import triton_kernel as words

    types = {"images": "*u8", "index": "*i64", "table": "*fp32", "num_samples": "i32", "key": "i64"}
    types |= dict.fromkeys(("epoch", "number", "padding", "flip", "cutout"), "i32")
    for random, last in ((False, False), (True, False), (True, True)):
        constants = {"H": 32, "W": 32, "CH": 3, "RANDOM": random, "IMAGES_LAST": False, "OUT_LAST": last}
        named = f"{', random' if random else ''}{', channels last' if last else ''}"
        yield f"augment_batch{named}", augment.augment_batch_kernel, constants | {"PIXELS": augment.PIXELS}, types
    types = {"index": "*i64", "out": "*i32", "draws": "i32", "key": "i64", "epoch": "i32", "view": "i32"}
    yield "random_words", words.random_words_kernel, {"BLOCKS": words.BLOCKS}, types
    yield from strong_cases()


def strong_cases():
    from fastlnl.ops.random_operations import triton_kernel as strong

    types = {"given": "*fp32", "made": "*i8", "out": "*fp32", "draws": "*fp64", "table": "*fp32"}
    types |= {"num_draws": "i32", "cutout": "i32"}
    for channels, side in ((1, 28), (3, 32)):
        shape = {"H": side, "W": side, "CH": channels, "PLANE_STEP": side * side, "PIXEL_STEP": 1}
        shape |= {"BLOCK": strong.BLOCK}
        for turn, kind in enumerate(("*fp32", "*i8")):
            named = f"random_operations, {channels} x {side} x {side}, round {turn}"
            yield named, strong.change_values_kernel, shape | {"TURN": turn}, types | {"given": kind}
        named = f"random_operations, {channels} x {side} x {side}, move"
        yield named, strong.move_pixels_kernel, shape | {"CUT": True}, types | {"given": "*i8"}


def dynamics_cases():
    from fastlnl.ops.dynamics import triton_kernel as dynamics
    from fastlnl.ops.history_weight import triton_kernel as history

    shape = {"C": 100, "MEAN_ROW": 0, "EMA_ROW": 1, "KEPT_ROW": 1, "ROWS": dynamics.ROWS, "SCAN": dynamics.SCAN}
    types = {"records": "*i32", "counters": "*i64", "second": "*i64", "numbers": "*fp32", "history": "*fp16"}
    types |= {"momentum": "fp32"}
    for both in (False, True):
        constants = shape | {"SECOND": both, "HISTORY": both, "LOG_ODDS": both}
        constants |= {} if both else {"second": None, "history": None}
        yield f"dynamics{', second view, ring' if both else ''}", dynamics.dynamics_kernel, constants, types
    types = {"history": "*fp16", "position": "*i64", "decay": "fp32", "rows": "i32"}
    yield "history_weight", history.history_weight_kernel, {"PIECE": history.PIECE}, types


def selection_cases():
    from fastlnl.ops.class_reduce import triton_kernel as reduce
    from fastlnl.ops.select import triton_kernel as select

    types = dict.fromkeys(("group", "quota", "prefix", "remaining", "confident"), "*i64")
    types |= dict.fromkeys(("scores", "cut", "limit", "probs"), "*fp32") | {"mask": "*i8", "count": "*i32"}
    types |= dict.fromkeys(("n", "groups", "samples"), "i32")
    for grouped in (False, True):
        how = {"LARGEST": grouped, "GROUPED": grouped} | ({} if grouped else {"group": None})
        wide = {"ID_BITS": 21, "BLOCK": 2048, "num_warps": 8}
        named = ", groups" if grouped else ""
        yield f"select, rank{named}", select.rank_kernel, how | select.rank_shape(4096), types
        yield f"select, count{named}", select.count_kernel, how | wide | {"SHIFT": 24}, types
        yield f"select, mark{named}", select.mark_kernel, how | wide, types
        yield (
            f"select, narrow{', first' if grouped else ''}",
            select.narrow_kernel,
            {"FIRST": grouped, "ROWS": 4},
            types,
        )
    for classes in (10, 100, 1000, 21841):
        constants = reduce.block_shape(classes) | {"C": classes, "STRIDE": classes}
        yield f"class_reduce, {classes}", reduce.class_reduce_kernel, constants, types


def mixture_cases():
    from fastlnl.ops.beta_cdf import triton_kernel as cdf
    from fastlnl.ops.histogram_zoom import triton_kernel as zoom
    from fastlnl.ops.mixture_em import FAMILIES, INITS
    from fastlnl.ops.mixture_em import triton_kernel as em
    from fastlnl.ops.mixture_posterior import triton_kernel as posterior
    from fastlnl.ops.value_histogram import offset_bits
    from fastlnl.ops.value_histogram import triton_kernel as histogram

    for groups in (False, True):
        absent = {} if groups else {"group": None}
        which = "groups" if groups else "one group"
        constants = {"GROUPS": groups, "BLOCK": histogram.BLOCK} | absent
        yield f"range, {which}", histogram.range_kernel, constants, {}
        for limits in (False, True):
            given = {"LIMITS": limits, "BINS": 4096, "keys" if limits else "limits": None}
            named = f"{which}, {'given' if limits else 'found'} limits"
            yield f"fill, {named}", histogram.fill_kernel, constants | given | {"SHIFT": offset_bits(4096)}, {}
            if groups:
                yield f"merge, {named}", histogram.merge_kernel, given | {"CELLS": histogram.CELLS}, {}
        window = {"BINS": 4096, "SHIFT": offset_bits(4096), "PART": 4}
        filled = window | {"GROUPS": groups, "BLOCK": zoom.BLOCK} | absent
        yield f"zoom, fill, {which}", zoom.zoom_fill_kernel, filled, {}
        if groups:
            yield "zoom, points", zoom.zoom_points_kernel, window | {"POINTS": zoom.POINTS}, {}
        for beta, log_odds in product((False, True), repeat=2):
            named = f"posterior, {which}, {'beta' if beta else 'gaussian'}{', log-odds' if log_odds else ''}"
            constants = {"BETA": beta, "GROUPS": groups, "LOG_ODDS": log_odds, "BLOCK": posterior.BLOCK} | absent
            yield named, posterior.mixture_posterior_kernel, constants, {}
    for family, init, start in product(range(3), range(3), (False, True)):
        if family == 0 or (init == 0 and start):
            constants = {"FAMILY": family, "INIT": init, "REG_COVAR": 5e-4, "TOL": 1e-2, "CLIP": False, "START": start}
            constants |= {"BLOCK": em.BLOCK, "num_warps": em.NUM_WARPS}
            constants |= {} if start else {"start_": None}
            constants |= {} if INITS[init] == "kmeans++" else {"draw": None}
            named = f"em, {FAMILIES[family]}, {INITS[init]}{', start' if start else ''}"
            yield named, em.mixture_em_kernel, constants, {}
    yield "cdf", cdf.beta_cdf_kernel, {"BLOCK": cdf.BLOCK}, {"x": "*fp64", "out": "*fp64"}


def resources(kernel, constants, types, capability):
    constants = dict(constants)
    warps = constants.pop("num_warps", 4)
    compiled = compile_kernel(kernel, constants, warps, capability, **(TYPES | types))
    return usage_of(compiled) | {"shared": compiled.metadata.shared}


def measure(capabilities):
    import triton

    rows = {
        f"sm_{capability} {name}": resources(kernel, constants, types, capability)
        for capability in capabilities
        for name, kernel, constants, types in cases()
    }
    return {"triton": triton.__version__, "kernels": rows}


if __name__ == "__main__":
    if os.environ.pop("TRITON_INTERPRET", "0") == "1":
        raise SystemExit("TRITON_INTERPRET is set, but this is about compiled kernels; unset it")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    text = as_text(measure([int(word) for word in sys.argv[1:] if word.isdigit()] or CAPABILITIES))
    if "--update" in sys.argv:
        TABLE.write_text(text)
    print(text, end="")

"""The kernels of MixMatch and of masking, as they are launched, for `primitive_resources`."""


def mixmatch_cases():
    """(name, kernel, constants, types) of each."""
    yield from target_cases()
    yield from mixing_cases()
    yield from erasing_cases()
    yield from row_cases()


def target_cases():
    from fastlnl.ops.refine_targets import triton_kernel as refine

    types = {"views": ("*fp32",) * 4, "clean_prob": "*fp32", "power": "fp32"} | dict.fromkeys(
        ("first", "labelled"), "i32"
    )
    for classes in (10, 100, 1000, 21841):
        constants = refine.tile_shape(classes) | {"C": classes, "OWN": 2, "VIEWS": 4, "LABEL": True}
        yield f"refine_targets, {classes}", refine.refine_targets_kernel, constants, types


def mixing_cases():
    from fastlnl.ops.mix_views import triton_kernel as mix

    for kind, views in (("fp32", 4), ("fp32", 12), ("bf16", 12)):
        types = {"views": (f"*{kind}",) * views, "targets": ("*fp32",) * views, "starts": ("i32",) * views}
        types |= {"partner": "*i64", "coefficient": "*fp32", "images": f"*{kind}", "target": "*fp32"}
        constants = {"SIZE": 3072, "C": 10, "EACH": 0, "VIEWS": views, "BLOCK": mix.BLOCK}
        yield f"mix_views, {views} of {kind}", mix.mix_views_kernel, constants, types


def erasing_cases():
    from fastlnl.ops.erase_peaks import Masking, draws_of
    from fastlnl.ops.erase_peaks import triton_kernel as erase

    types = dict.fromkeys(("features", "target", "clean_prob", "kept", "images", "high", "low"), "*fp32")
    types |= {"draws": "*fp64", "black": "*fp32"} | dict.fromkeys(("boxes", "peaks"), "*i32")
    shapes = (
        ("CIFAR", (512, 4, 4), 32, 10, Masking()),
        ("ImageNet", (2048, 7, 7), 224, 1000, Masking(target_floor="clip")),
    )
    for name, maps, side, classes, masking in shapes:
        for last in (False, True):
            channels, height, width = maps
            cells = height * width
            stride = (channels * cells, 1, width * channels, channels) if last else (channels * cells, cells, width, 1)
            options = erase.peaks_options(maps, stride, (side, side), classes, draws_of(3), 3, masking)
            named = f"{name}{', channels last' if last else ''}"
            yield f"erase_peaks, peaks, {named}", erase.peaks_kernel, options, types
            constants = {"CH": 3, "HEIGHT": side, "WIDTH": side, "LAST": last, "DRAWS": 8, "FILL": 0, "black": None}
            yield f"erase_peaks, erase, {named}", erase.erase_kernel, constants | {"ELEMENTS": erase.ELEMENTS}, types


def row_cases():
    from fastlnl.ops.class_prior import triton_kernel as prior
    from fastlnl.ops.mixmatch_rows import triton_kernel as rows

    types = dict.fromkeys(("partial", "prior", "terms", "ratio"), "*fp32") | dict.fromkeys(
        ("groups", "labelled"), "i32"
    )
    types |= dict.fromkeys(("each", "soft", "prior_weight", "pull"), "fp32")
    for classes in (10, 100, 1000, 21841):
        shape = prior.tile_shape(classes) | {"C": classes, "STRIDE": classes}
        yield f"class_prior, add, {classes}", prior.add_rows_kernel, shape, types
        constants = shape | {"WEIGHT": True, "RATIO": True}
        yield f"mixmatch_rows, {classes}", rows.mixmatch_rows_kernel, constants, types
    constants = {"C": 100, "PRIOR": True, "GROUPS": prior.GROUPS, "BLOCK": prior.CLASSES}
    yield "class_prior, compare", prior.compare_kernel, constants, types

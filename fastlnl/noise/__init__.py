"""Noisy labels under named presets: "40 %" means something else in every paper, so a preset says which 40 % it is.

A generator draws two numbers for each sample, keyed by (seed, sample id): the first decides whether the label is
drawn anew, the second which label it becomes. `count` says how the first is read:

- "bernoulli": below the rate. The label depends on (seed, id) and on the true label of that sample, nothing else.
- "exact": the floor(rate * N) samples with the smallest numbers, ties by id. The numbers depend on (seed, id); which
  of them are the smallest depends on all N.
- "exact_per_class": the same within each true class, floor(rate * n_c) samples of class c.

Instance-dependent noise draws two numbers for each sample, too, its own rate and its label: "each" is its only count.
"""

from fastlnl.noise.classes import COUNTS, asymmetric, blocks5, next_class, pairs, similar_digits, symmetric
from fastlnl.noise.parts import instance
from fastlnl.noise.presets import DEFAULTS, PRESETS, NoisyLabels, Preset, apply_noise, describe, presets_for

__all__ = [
    "COUNTS",
    "DEFAULTS",
    "PRESETS",
    "NoisyLabels",
    "Preset",
    "apply_noise",
    "asymmetric",
    "blocks5",
    "describe",
    "instance",
    "next_class",
    "pairs",
    "presets_for",
    "similar_digits",
    "symmetric",
]

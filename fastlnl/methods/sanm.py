"""SANM on DivideMix: mask what the network looks at, by how little the label is trusted, and reconstruct the image.

Tu et al., CVPR 2023, arXiv 2302.06805. The card in README.md says what is known from the paper and what from its code.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fastlnl.errors import ShapeError
from fastlnl.methods.base import Network, Run
from fastlnl.methods.dividemix import DivideMix, Step, one_sample
from fastlnl.networks import capture
from fastlnl.networks.decoder import decoder
from fastlnl.ops.erase_peaks import ErasedPair, Masking, draws_of, erase_peaks
from fastlnl.philox import uniform

VIEWS = ("code", "two", "unmasked")
LARGEST_UNCLAMPED = 14  # classes; with more, the mass that a mask moves can exceed a sharpened target's largest entry


class SANM(DivideMix):
    """DivideMix, of whose views two are masked copies with masked labels, and a decoder that undoes the masks.

    Args:
        preset: "default"; "code" (no floor under masked labels), "code_c2d" (also the double softmax), "clothing1m".
        mask_ratio: low, high and distrust: a box covers U(low, high) + distrust (1 - clean_prob) of the image, times
            area_factor, and as much of the label moves away from its class.
        area_factor: share of the ratio that becomes area.
        mask_anchor: the peak is the box's "corner" or its "center".
        mask_fill: "uniform_normalised" (one random value a channel), "mean" or "black".
        black: with mask_fill "black": its normalised value in each channel, -mean / std.
        target_floor: "none", "clamp" or "clip"; None: "none" up to 14 classes, else "clamp". See `Masking`.
        separate_low_box: the box at the lowest point has ratio, aspect and label of its own.
        quantise_attention: peaks of a map of 256 steps, which decides ties as the authors' code does.
        reconstruction_weight: of the decoder's squared error; 0 has no decoder.
        views: "code" (four unmasked, two masked), "two" (two and two), or "unmasked" (two alone: that is DivideMix).
        weak, strong: augmentations of the unmasked views; None: strong ones of the run, without and with a cut of half
            the height ("strong:0", "strong:0.5").
        feature_map: name of the module whose output is the feature map, such as "layer4"; see `capture`.
        double_softmax: a defect of the authors' code, for comparison only: softmax of the softmax.
        others: see `DivideMix`.
    """

    name = "sanm"
    defaults: ClassVar[dict[str, Any]] = {
        **{name: value for name, value in DivideMix.defaults.items() if name != "augment"},
        "clip_norm": 1.0,
        "mask_ratio": (0.02, 0.07, 0.03),
        "area_factor": 0.5,
        "mask_anchor": "corner",
        "mask_fill": "uniform_normalised",
        "black": None,
        "target_floor": None,
        "separate_low_box": False,
        "quantise_attention": True,
        "reconstruction_weight": 0.02,
        "views": "code",
        "weak": None,
        "strong": None,
        "feature_map": None,
        "double_softmax": False,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **DivideMix.presets,
        "code": {"target_floor": "none"},
        "code_c2d": {"target_floor": "none", "double_softmax": True},
        "clothing1m": {
            "mask_ratio": (0.06, 0.13, 0.1), "area_factor": 1.0, "separate_low_box": True, "views": "two",
            "reconstruction_weight": 0.3, "warmup_epochs": 1, "unlabeled_weight": 0.0, "alpha": 0.5,
        },
    }  # fmt: skip

    def setup(self, run: Run) -> None:
        options = self.options
        if len(run.image_shape) != 3:
            raise ShapeError(f"samples are {run.image_shape} but sanm masks images (ch, H, W); use dividemix instead")
        if options["views"] not in VIEWS:
            raise ValueError(f"views is {options['views']!r}; expected one of {', '.join(VIEWS)}")
        if not options["reconstruction_weight"] >= 0:
            raise ValueError(f"reconstruction_weight is {options['reconstruction_weight']}; expected at least 0")
        if (options["black"] is None) == (options["mask_fill"] == "black"):
            raise ValueError(
                f"mask_fill is {options['mask_fill']!r} and black {options['black']}; a black box, and only that, "
                "needs the normalised value of a black pixel in each channel, -mean / std"
            )
        if options["target_floor"] is None:
            options["target_floor"] = "none" if run.num_classes <= LARGEST_UNCLAMPED else "clamp"
        super().setup(run)
        masking = {name: options[name] for name in Masking._fields}
        self.masking = Masking(**{**masking, "mask_ratio": tuple(options["mask_ratio"])})
        black = options["black"]
        self.black = None if black is None else torch.tensor(black, dtype=torch.float32, device=run.device)
        self.masks = options["views"] != "unmasked"
        self.decoders: list[nn.Module] = []
        if self.masks and options["reconstruction_weight"]:
            self.decoders = [self.build_decoder(network) for network in run.networks]

    def augmentations(self) -> tuple[str | None, ...]:
        """The unmasked views, then two more: targets come from these, and the masked copies from the first of them."""
        strong = self.run.strong_augment
        weak = self.options["weak"] or f"{strong}:0"
        if self.options["views"] == "code":
            strong = self.options["strong"] or f"{strong}:0.5"
            return (weak, weak, strong, strong, weak, weak)
        return (weak,) * (4 if self.options["views"] == "two" else 2)

    def build_decoder(self, network: Network) -> nn.Module:
        """A decoder for the feature maps of this network, trained by its optimiser."""
        with self.run.at_rest(), capture(network.module, self.options["feature_map"]) as features:
            network(one_sample(self.run))
        module = decoder(tuple(features.value.shape[1:]), self.run.image_shape).to(self.run.device)
        network.optimizer.add_param_group({"params": list(module.parameters())})
        return module

    def logits(self, network: Network, images: Tensor) -> Tensor:
        logits = network(images)
        return logits.float().softmax(dim=1) if self.options["double_softmax"] else logits

    def train(self, k: int, t: int) -> None:
        if self.masks:  # one row of random numbers a sample, for the whole epoch
            ids = torch.arange(self.run.num_samples, device=self.run.device)
            draws = draws_of(self.run.image_shape[0], self.masking.separate_low_box)
            self.mask_draws = uniform(self.run.seed, "erase_peaks", ids, draws, t, view=k)
        super().train(k, t)

    def step_loss(self, network: Network, peer: Network, step: Step) -> Tensor:
        """DivideMix's targets; masks where the network looks; the masked copies join the views, and are undone."""
        if not self.masks:
            return super().step_loss(network, peer, step)
        seen: list[Tensor] = []  # feature maps in the order of the forward passes: those of the unlabelled half first
        with capture(network.module, self.options["feature_map"]) as features:

            def look(images: Tensor) -> Tensor:
                logits = self.logits(network, images)
                seen.append(features.value)
                return logits

            target = self.targets(look, network, peer, step)
        maps = torch.cat((seen[-2], seen[0])) if len(step.halves) > 1 else seen[-2]  # of the views that are masked
        images = torch.cat([half.views[-2] for half in step.halves])
        index = torch.cat([half.index for half in step.halves])
        pair = erase_peaks(
            maps, images, target, step.clean_prob[index], self.mask_draws[index], self.masking,
            black=self.black,
        )  # fmt: skip
        loss = self.reconstruction(network, pair, images) if self.decoders else 0.0

        unmasked = len(self.views) - 2
        parts = (part.split(step.sizes) for part in (target, pair.high, pair.low, pair.target, pair.low_target))
        views, targets = [], []
        for half, own, high, low, high_target, low_target in zip(step.halves, *parts, strict=True):
            views.append((*half.views[:-2], high, low))
            targets.append((*(own,) * unmasked, high_target, low_target))
        return loss + self.mixmatch(network, step, views, targets)

    def reconstruction(self, network: Network, pair: ErasedPair, images: Tensor) -> Tensor:
        """Weighted squared error of both masked copies, decoded from their features, against the unmasked images."""
        with capture(network.module, self.options["feature_map"]) as features:
            network(torch.cat((pair.high, pair.low)))
        decode = self.decoders[self.run.networks.index(network)]
        precision = features.value.dtype
        with torch.autocast(self.run.device.type, precision, enabled=precision != torch.float32):
            high, low = decode(features.value).float().chunk(2)
        return self.options["reconstruction_weight"] * (mse_loss(high, images) + mse_loss(low, images))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "decoders": [module.state_dict() for module in self.decoders]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for module, saved in zip(self.decoders, state["decoders"], strict=True):
            module.load_state_dict(saved)

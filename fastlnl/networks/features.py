"""The feature map of a network: what its last convolution gives, before the mean over pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def feature_map(module: nn.Module, name: str | None = None) -> nn.Module:
    """The submodule whose output is the feature map (B, Cf, h, w) of a convolutional network.

    Args:
        module: a network of `build_network`, or any other together with a name. Wrappers for several devices are
            looked through.
        name: of the submodule as in `module.named_modules()`, such as "layer4" of a torchvision or timm ResNet. None
            takes what comes before the AdaptiveAvgPool2d of an nn.Sequential.

    Raises:
        ValueError: no module has this name; without a name, the network is no nn.Sequential with an
            AdaptiveAvgPool2d; the network is compiled.
    """
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        module = module.module
    if hasattr(module, "_orig_mod"):
        raise ValueError("the network comes from torch.compile, which calls no hooks; pass the one before compiling")
    if name is not None:
        try:
            return module.get_submodule(name)
        except AttributeError:
            raise ValueError(f"{type(module).__name__} has no module {name!r}; {children_of(module)}") from None
    layers = list(module) if isinstance(module, nn.Sequential) else []
    for before, layer in pairwise(layers):
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            return before
    raise ValueError(
        f"{type(module).__name__} is no nn.Sequential with an AdaptiveAvgPool2d, so its feature map has to be named; "
        f"{children_of(module)}"
    )


def children_of(module: nn.Module) -> str:
    return f"pass name=, such as one of {', '.join(name for name, _ in module.named_children()) or 'none'}"


class Captured:
    """What `capture` keeps: the output of the last forward pass."""

    def __init__(self) -> None:
        self._value: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """(B, Cf, h, w), part of the graph of the logits, in the type of the forward pass (under autocast a half one).

        Raises:
            RuntimeError: the network was not called yet.
        """
        if self._value is None:
            raise RuntimeError("no feature map yet: call the network inside `with capture(network)`, uncompiled")
        return self._value

    def keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._value = output


@contextmanager
def capture(module: nn.Module, name: str | None = None) -> Iterator[Captured]:
    """Keep the feature map of the forward passes inside the `with` block.

        with capture(network) as features:
            logits = network(images)
        decoder(features.value)

    Of several forward passes the last one counts; outside the block nothing is kept any more, and what was stays. The
    value belongs to the graph of the logits: under `torch.no_grad()` it has none.

    Args:
        module, name: see `feature_map`.

    Raises:
        ValueError: see `feature_map`.
    """
    captured = Captured()
    handle = feature_map(module, name).register_forward_hook(captured.keep)
    try:
        yield captured
    finally:
        handle.remove()

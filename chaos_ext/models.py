"""The paper's two networks, initialised from a seed without touching torch's global random state."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from .base.arguments import require_int, require_seed

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "hardtanh": nn.Hardtanh,
}


def activation_module(name: str) -> nn.Module:
    """A new activation module with torch's default settings.

    Args:
        name: a name from ``ACTIVATIONS``.

    Raises:
        ValueError: there is no activation of that name.
    """
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


def paper_mlp(
    inputs: int = 256,
    hidden: int = 20,
    classes: int = 10,
    activation: str = "relu",
    *,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> nn.Sequential:
    """The paper's multilayer perceptron: flatten, linear, activation, linear.

    P = hidden (inputs + 1) + classes (hidden + 1): 5350 for the 256-20-10 of the experiments (16 x 16 images) and 15910
    for the 784-20-10 that the paper's text names (``inputs=784``).

    >>> sum(p.numel() for p in paper_mlp().parameters())
    5350

    Args:
        inputs: pixels of an image.
        hidden: hidden units.
        classes: outputs.
        activation: a name from ``ACTIVATIONS``.
        seed: seeds torch's default initialisation, and leaves the global random state as it was; None draws from that
            state, as torch does.
        dtype: of the parameters, by default torch's default dtype. The initial values are drawn in float32 and
            converted, so that float32 and float64 models of one seed start at the same point.
        device: of the parameters, by default torch's default device; values are drawn on the CPU, so that they do not
            depend on the device.

    Returns:
        A module that maps images [N, 1, h, w], h w = ``inputs``, to logits [N, classes].

    Raises:
        ValueError: there is no activation of that name, or a size below 1.
    """
    _check(seed, inputs=inputs, hidden=hidden, classes=classes)

    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Flatten(), _linear(inputs, hidden), activation_module(activation), _linear(hidden, classes)
        )

    return _seeded(build, seed, dtype, device)


def paper_cnn(
    base: int = 4,
    classes: int = 10,
    activation: str = "relu",
    *,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> nn.Sequential:
    """The paper's convolutional network for 1 x 16 x 16 images.

    Four blocks of a 3 x 3 convolution (padding 1, with bias), an activation and 2 x 2 max-pooling, with base, base,
    2 base and 2 base channels; the pooling leaves one position, which a linear layer classifies. With base = 4,
    P = 40 + 148 + 296 + 584 + 90 = 1158.

    >>> sum(p.numel() for p in paper_cnn().parameters())
    1158

    Args:
        base: channels of the first two convolutions.
        classes: outputs.
        activation: a name from ``ACTIVATIONS``.
        seed: as in ``paper_mlp``.
        dtype: as in ``paper_mlp``.
        device: as in ``paper_mlp``.

    Returns:
        A module that maps images [N, 1, 16, 16] to logits [N, classes].

    Raises:
        ValueError: there is no activation of that name, or a size below 1.
    """
    _check(seed, base=base, classes=classes)

    def build() -> nn.Sequential:
        layers: list[nn.Module] = []
        channels = (1, base, base, 2 * base, 2 * base)
        for before, after in pairwise(channels):
            conv = nn.Conv2d(before, after, kernel_size=3, padding=1, dtype=torch.float32)
            layers += [conv, activation_module(activation), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), _linear(2 * base, classes))

    return _seeded(build, seed, dtype, device)


MODELS: dict[str, Callable[..., nn.Sequential]] = {"mlp": paper_mlp, "cnn": paper_cnn}


def _check(seed: int | None, **sizes: int) -> None:
    for name, size in sizes.items():
        require_int(name, size, 1)
    if seed is not None:
        require_seed("seed", seed)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, dtype=torch.float32)


def _seeded(
    build: Callable[[], nn.Sequential],
    seed: int | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> nn.Sequential:
    with torch.device("cpu"):  # a default device set by the user must not decide the initial values
        if seed is None:
            model = build()
        else:
            state = torch.default_generator.get_state()
            try:
                torch.default_generator.manual_seed(seed)
                model = build()
            finally:
                torch.default_generator.set_state(state)
    return model.to(dtype=dtype or torch.get_default_dtype(), device=device or torch.get_default_device())

"""Encoders in eval mode whose padded places torch leaves out where no gradient is asked for: nested tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import chaos_ext as ce
from chaos_ext.errors import UnsupportedError

CLASSES = 3


class Padded(nn.Module):
    """An encoder whose padding mask is aligned to the left, and an output that reads padded places, too."""

    def __init__(self, padded_first: bool = False, **options) -> None:
        super().__init__()
        self.embed, self.first = nn.Linear(3, 4), padded_first
        layer = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, activation="gelu", **options)
        self.layers, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        pad = place < x[:, :1, 0].abs().ceil() if self.first else place >= 5 - x[:, :1, 0].abs().ceil()
        return self.out(self.layers(self.embed(x), src_key_padding_mask=pad).mean(1))


def batch(dtype=torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, dtype=dtype)
    x[:, 0, 0] = torch.tensor([0.5, 1.5, 2.5, 0.5, 1.5, 0.5])  # 0, 1 or 2 places are padded
    return x, torch.randint(CLASSES, (6,))


def by_differences(model: nn.Module, loss_fn, x: Tensor, y: Tensor, v: Tensor, h: float = 1e-4) -> Tensor:
    """H v of the training loss: of gradients of what the optimizer sees."""
    params = [p for p in model.parameters() if p.requires_grad]
    theta = nn.utils.parameters_to_vector(params).detach()

    def gradient(at: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(at, params)
        parts = torch.autograd.grad(loss_fn(model(x), y), params)
        return torch.cat([g.flatten() for g in parts])

    def central(step: float) -> Tensor:
        return (gradient(theta + step * v) - gradient(theta - step * v)) / (2 * step)

    found = (4 * central(h / 2) - central(h)) / 3
    nn.utils.vector_to_parameters(theta, params)
    return found


def own_loss(z: Tensor, y: Tensor) -> Tensor:
    return (z - y.unsqueeze(1)).square().mean() + z.logsumexp(1).mean()


LOSSES = pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), own_loss], ids=["rule", "own loss"])


def check(model: nn.Module, loss_fn) -> ce.HessianOperator:
    x, y = batch()
    op = ce.HessianOperator(model, loss_fn, x, y)
    v = torch.randn(op.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product = op @ v
    torch.testing.assert_close(op.output, model(x).detach(), rtol=1e-12, atol=1e-13)
    expected = by_differences(model, loss_fn, x, y, v)
    # Differences of gradients, extrapolated, have 10 digits.
    torch.testing.assert_close(product, expected, rtol=1e-7, atol=1e-8 * float(expected.abs().max()))
    return op


@LOSSES
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded_first", [False, True])
def test_an_encoder_in_eval_mode_is_the_one_that_is_trained(padded_first, norm_first, loss_fn):
    model = Padded(padded_first, norm_first=norm_first).double().eval()
    op = check(model, loss_fn)
    assert all(row.path.startswith("enter") for row in op.explain()) == (loss_fn is not own_loss)
    assert torch.backends.mha.get_fastpath_enabled()
    assert model.layers.use_nested_tensor is not norm_first


def test_in_float32_too():
    model = Padded().eval()
    x, y = batch(torch.float32)
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y, verify=True)
    assert all(row.path.startswith("enter") for row in op.explain())
    torch.testing.assert_close(op.output, model(x).detach())


@LOSSES
def test_a_frozen_encoder_that_leaves_out_padded_places_is_refused(loss_fn):
    """Where nothing in it is trained, the loss itself goes by nested tensors, but not under our instruments."""
    model = Padded().double().eval()
    model.embed.requires_grad_(False)
    model.layers.requires_grad_(False)
    x, y = batch()
    with pytest.raises(UnsupportedError, match="enable_nested_tensor=False"):
        ce.HessianOperator(model, loss_fn, x, y)
    before = model(x)
    model.layers.use_nested_tensor = False  # what that option sets
    assert (before - model(x)).abs().max() > 1e-3
    check(model, loss_fn)


def test_an_encoder_that_is_frozen_behind_a_trained_embedding():
    model = Padded().double().eval()
    model.layers.requires_grad_(False)
    check(model, nn.CrossEntropyLoss())


@pytest.mark.parametrize("block", ["out.*", "layers.*", "embed.*"])
def test_blocks_see_the_same_loss(block):
    model = Padded().double().eval()
    x, y = batch()
    whole = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    part = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y, params=block)
    owners = [n for n, p in model.named_parameters() for _ in range(p.numel())]
    rows = [i for i, name in enumerate(owners) if name.startswith(block[:-1])]
    torch.testing.assert_close(part.dense(), whole.dense()[rows][:, rows], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(part.output, whole.output)


def test_every_operator_of_the_batch_agrees():
    """GGN, data sets, and what a submodule without a rule makes of the encoder."""

    class Own(nn.TransformerEncoderLayer):
        pass

    torch.manual_seed(3)
    model, x, y = Padded().double().eval(), *batch()
    op = ce.HessianOperator(model, nn.CrossEntropyLoss(), x, y)
    union = ce.DatasetHessian(model, nn.CrossEntropyLoss(), [(x[:2], y[:2]), (x[2:], y[2:])])
    v = torch.randn(op.shape[0], dtype=torch.float64)
    product = op @ v
    torch.testing.assert_close(union @ v, product, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(union.loss, op.loss)
    other = Padded().double().eval()
    for i in range(2):
        other.layers.layers[i] = Own(4, 2, 5, batch_first=True, activation="gelu").double().eval()
    other.load_state_dict(model.state_dict())
    found = ce.HessianOperator(other, nn.CrossEntropyLoss(), x, y) @ v
    torch.testing.assert_close(found, product, rtol=1e-9, atol=1e-11)
    ggn = ce.GGNOperator(model, nn.CrossEntropyLoss(), x, y)
    torch.testing.assert_close(ce.GGNOperator(other, nn.CrossEntropyLoss(), x, y) @ v, ggn @ v, rtol=1e-9, atol=1e-11)

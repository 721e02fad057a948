"""The paper's networks: their size, their default initialisation, and that seeding them disturbs nothing."""

import math

import pytest
import torch
from torch import nn

from chaos_ext.models import ACTIVATIONS, paper_cnn, paper_mlp


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_are_the_papers():
    assert size(paper_mlp()) == 5350
    assert size(paper_mlp(inputs=784)) == 15910
    assert size(paper_cnn()) == 1158


@pytest.mark.parametrize("make", [paper_mlp, paper_cnn])
def test_maps_images_to_ten_logits(make):
    model = make(seed=0)
    assert isinstance(model, nn.Sequential)
    assert model(torch.randn(3, 1, 16, 16)).shape == (3, 10)


def test_cnn_is_four_blocks_down_to_one_position():
    model = paper_cnn(base=4)
    kinds = [type(m).__name__ for m in model]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 4 + ["Flatten", "Linear"]
    assert [m.out_channels for m in model if isinstance(m, nn.Conv2d)] == [4, 4, 8, 8]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_can_be_named(name):
    model = paper_mlp(activation=name, seed=0)
    assert torch.isfinite(model(torch.randn(2, 1, 16, 16))).all()


def test_the_activations_of_the_layerwise_engine_are_all_named():
    kinds = {type(make()) for make in ACTIVATIONS.values()}
    expected = {nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.SiLU, nn.GELU}
    assert kinds == expected | {nn.Hardtanh}


@pytest.mark.parametrize("make", [paper_mlp, paper_cnn])
def test_unknown_activation_lists_the_known_ones(make):
    with pytest.raises(ValueError, match=r"activation: expected one of relu, .*hardtanh, got 'swish'"):
        make(activation="swish")


@pytest.mark.parametrize("make", [paper_mlp, paper_cnn])
def test_seed_decides_the_values_and_leaves_the_global_state_alone(make):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = make(seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = make(seed=1).state_dict(), make(seed=2).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)


def test_seeded_values_are_those_of_torchs_default_initialisation():
    model = paper_mlp(seed=11)
    torch.manual_seed(11)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(256, 20), nn.ReLU(), nn.Linear(20, 10))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_without_a_seed_the_global_state_is_used():
    torch.manual_seed(3)
    first = paper_mlp()
    second = paper_mlp()
    assert not torch.equal(first[1].weight, second[1].weight)
    torch.manual_seed(3)
    assert torch.equal(first[1].weight, paper_mlp()[1].weight)


def test_float32_and_float64_start_at_the_same_point():
    single, double = paper_mlp(seed=5), paper_mlp(seed=5, dtype=torch.float64)
    assert double[1].weight.dtype == torch.float64
    assert torch.equal(single[1].weight.double(), double[1].weight)


def test_distance_of_two_initialisations_is_about_4_51():
    # Uniform in +-1/sqrt(fan_in), weights and biases: variance 1/(3 fan_in), two draws differ by twice that.
    expected = math.sqrt(2 * (20 * 257 / (3 * 256) + 10 * 21 / (3 * 20)))
    assert expected == pytest.approx(4.51, abs=0.01)
    flat = [nn.utils.parameters_to_vector(paper_mlp(seed=s).parameters()) for s in range(40)]
    distances = torch.stack([torch.dist(a, b) for a, b in zip(flat[::2], flat[1::2], strict=True)])
    assert distances.mean().item() == pytest.approx(expected, abs=0.05)

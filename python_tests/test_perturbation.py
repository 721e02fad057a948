"""The five strategies of perturbation, on exponents and directions that are known."""

import pytest
import torch
from ensembles import mlp, size
from torch.optim import SGD
from training import CE, setting, take_step

import chaos_ext as ce
from chaos_ext.dynamics.perturbation import STRATEGIES

P = 12
EXPONENTS = torch.tensor([0.5, 0.2, 1e-9, 0.0, -1e-9, -0.1, -0.3], dtype=torch.float64)


class Known:
    """What an analyzer of finite-time exponents gives, made up."""

    def __init__(self, exponents=EXPONENTS, size=P):
        self._exponents = exponents
        g = torch.Generator().manual_seed(3)
        self.V = torch.linalg.qr(torch.randn(size, len(exponents), generator=g, dtype=torch.float64))[0]

    def exponents(self):
        return self._exponents

    @property
    def neutral(self):
        return self._exponents.abs() < 1e-6

    def singular_vectors(self, side="right"):
        assert side == "right"
        return self.V


SPANS = {"max_chaotic": [0], "max_nonchaotic": [6], "chaotic": [0, 1], "nonchaotic": [5, 6]}


@pytest.mark.parametrize("strategy", SPANS)
def test_a_strategy_stays_in_its_directions(strategy):
    an = Known()
    v = ce.perturbation(an, strategy, torch.Generator().manual_seed(0))
    assert v.shape == (P,)
    torch.testing.assert_close(v.norm(), torch.ones((), dtype=torch.float64))
    inside = an.V[:, SPANS[strategy]]
    torch.testing.assert_close(inside @ (inside.T @ v), v)
    assert bool(((inside.T @ v).abs() > 1e-3).all())


def test_random_has_a_part_in_every_direction():
    an = Known()
    v = ce.perturbation(an, "random", torch.Generator().manual_seed(0))
    torch.testing.assert_close(v.norm(), torch.ones((), dtype=torch.float64))
    assert bool(((an.V.T @ v).abs() > 1e-4).all())
    assert float((v - an.V @ (an.V.T @ v)).norm()) > 0.1


def test_draws_are_uniform_on_the_sphere_and_repeatable():
    an, g = Known(), torch.Generator().manual_seed(0)
    drawn = torch.stack([ce.perturbation(an, "chaotic", g) for _ in range(4000)]) @ an.V[:, :2]
    torch.testing.assert_close((drawn**2).mean(0), torch.full((2,), 0.5, dtype=torch.float64), atol=0.02, rtol=0)
    assert float(drawn.mean(0).norm()) < 0.04
    again = ce.perturbation(an, "chaotic", torch.Generator().manual_seed(0))
    assert torch.equal(again, ce.perturbation(an, "chaotic", torch.Generator().manual_seed(0)))


def test_a_generator_of_ones_own_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    ce.perturbation(Known(), "random", torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("strategy", ["max_chaotic", "chaotic"])
def test_neutral_exponents_are_not_chaotic(strategy):
    with pytest.raises(ValueError, match=f"'{strategy}' needs an exponent above zero by more than its tolerance"):
        ce.perturbation(Known(EXPONENTS[2:]), strategy)


@pytest.mark.parametrize("strategy", ["max_nonchaotic", "nonchaotic"])
def test_neutral_exponents_are_not_nonchaotic(strategy):
    with pytest.raises(ValueError, match=f"'{strategy}' needs an exponent below zero by more than its tolerance"):
        ce.perturbation(Known(EXPONENTS[:5]), strategy)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"strategy: expected one of max_chaotic, .*, got 'most'"):
        ce.perturbation(Known(), "most")
    with pytest.raises(TypeError, match="an: expected an analyzer with method='svd', got object"):
        ce.perturbation(object(), "random")
    full = Known(size=2 * size(mlp()))
    full.model = mlp()
    with pytest.raises(ce.UnsupportedError, match="theta and buffers together"):
        ce.perturbation(full, "random")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_twins_displaced_before_a_real_run_part_by_their_exponents(momentum):
    steps, eps = 10, 1e-6
    model, data = setting()
    opt = SGD(model.parameters(), lr=0.3, momentum=momentum)
    an = ce.LyapunovAnalyzer(model, opt, method="svd", state="theta" if momentum else "auto")
    for i in range(steps):
        x, y = data[i % len(data)]
        op = ce.HessianOperator(model, CE, x, y)
        an.update(op)
        take_step(model, opt, x, y, op)
    generator = torch.Generator().manual_seed(0)
    W = torch.stack([ce.perturbation(an, s, generator) for s in STRATEGIES], 1)
    stretched = an.singular_vectors("left") * (an.exponents() * steps).exp() @ (an.singular_vectors("right").T @ W)

    model, _ = setting()
    fresh = SGD(model.parameters(), lr=0.3, momentum=momentum)
    twins = ce.Ensemble.around(model, CE, fresh, eps * W)
    for i in range(steps):
        twins.step(*data[i % len(data)])
    grown = (twins.thetas[1:] - twins.thetas[0]).norm(dim=1) / eps
    sigma = (an.exponents() * steps).exp()
    torch.testing.assert_close(grown[STRATEGIES.index("max_chaotic")], sigma[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(grown[STRATEGIES.index("max_nonchaotic")], sigma[-1], rtol=1e-3, atol=0)
    assert sigma[0] / sigma[-1] > 3
    assert bool((twins.nonlinearity(eps * stretched) < 1e-3).all())


def test_an_analyzer_by_qr_has_no_initial_directions():
    model, _ = setting()
    with pytest.raises(ce.UnsupportedError, match="only of method='svd'; this analyzer has method='qr'"):
        ce.perturbation(ce.LyapunovAnalyzer(model, SGD(model.parameters(), lr=0.1)), "random")

"""Controls of pruning: random directions, as many as a set has or with as large a part of the gradient."""

import math
from dataclasses import replace

import pytest
import torch

import chaos_ext as ce
from chaos_ext.data import load
from chaos_ext.experiments import fig1, pruned, training
from chaos_ext.experiments.settings import Unit

pytestmark = pytest.mark.usefixtures("digits_cache")


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.3, 1.0])
def test_what_is_taken_out_is_a_projection_with_that_share(share):
    g = _random(200)
    c = pruned._component(g, share, torch.Generator().manual_seed(1))
    assert float(c @ c / (g @ g)) == pytest.approx(share, abs=1e-14)
    assert float(c @ g / (g @ g)) == pytest.approx(share, abs=1e-14)  # c = Q Q^T g is orthogonal to g - c


def test_it_is_the_projection_on_the_first_vector_of_the_subspace():
    """sqrt(s) g / |g| + sqrt(1 - s) xi, with the same draw of xi; vectors orthogonal to both take nothing."""
    g, s = _random(50), 0.2
    xi = _random(50, seed=7)
    xi = xi - g * (g @ xi) / (g @ g)
    q = math.sqrt(s) * g / g.norm() + math.sqrt(1 - s) * xi / xi.norm()
    c = pruned._component(g, s, torch.Generator().manual_seed(7))
    torch.testing.assert_close(c, q * (q @ g), rtol=0, atol=1e-12)


def test_no_gradient_is_left_alone():
    assert torch.equal(pruned._component(torch.zeros(5), 0.5, torch.Generator()), torch.zeros(5))


@pytest.mark.parametrize(("n", "size"), [(3, 40), (20, 40), (0, 40), (40, 40)])
def test_the_share_of_a_random_subspace_has_its_distribution(n, size):
    """That of explicit random subspaces: Beta(n / 2, (P - n) / 2), mean n / P, variance 2 n (P - n) / (P^2 (P + 2))."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([pruned._beta(n, size, generator) for _ in range(4000)], dtype=torch.float64)
    variance = 2 * n * (size - n) / (size**2 * (size + 2))
    assert float(drawn.mean()) == pytest.approx(n / size, abs=4 * math.sqrt(variance / 4000) + 1e-12)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.15, abs=1e-12)
    Q = torch.linalg.qr(_random(200, size, size))[0][:, :, :n]
    explicit = Q[:, 0].square().sum(1)  # of the first unit vector
    assert float(explicit.mean()) == pytest.approx(n / size, abs=4 * math.sqrt(variance / 200) + 1e-12)


def _training(run, **options):
    d = load("digits")
    data = replace(d, x_train=d.x_train[:77], y_train=d.y_train[:77])
    settings = fig1.Fig1Settings(
        data="digits", data_fingerprint="", model="mlp", activation="relu", epochs=3, max_steps=None, lr=0.05,
        batch_size=8, momentum=0.0, seeds=(1,), runs=(run,), device="cpu", dtype="float64", threads=1, chaos_ext="",
        torch="", **{"k": None, "order": "top_abs", "noise": None, **options},
    )  # fmt: skip
    return fig1.Fig1().work(settings, Unit(1, run), data)


def _steps(run, count=8, **options):
    """Rows as lists, and the step that was taken after each, relative to the gradient: (|d|^2, d g) / |g|^2."""
    t, found = _training(run, **options), []
    for _ in range(count):
        index = t.order.epoch(t.step // t.order.steps_per_epoch)[t.step % t.order.steps_per_epoch]
        x, y = t.batch_data.x_train[index], t.batch_data.y_train[index]
        op = ce.HessianOperator(t.model, t.loss_fn, x, y)
        g, theta = op.gradient, torch.nn.utils.parameters_to_vector(t.model.parameters()).detach()
        spec = ce.spectrum(op)
        names = ["run", "seed", "step", "loss", "accuracy", "val_loss", "val_accuracy", *fig1.Fig1.columns]
        row = dict(zip(names, t.advance().decode().strip().split(",")))
        d = (theta - torch.nn.utils.parameters_to_vector(t.model.parameters()).detach()) / 0.05
        found.append((row, g, d, spec))
    return found


@pytest.mark.parametrize("chosen", pruned.SETS)
def test_energy_takes_out_the_share_of_its_set(chosen):
    for row, g, d, spec in _steps(f"{chosen}-energy"):
        mask = ce.select(spec, 0.05, chosen)
        share = float(spec.project(g, mask).square().sum() / g.square().sum())
        assert float(row["share_removed"]) == pytest.approx(share, rel=1e-9)
        assert float(row[f"share_{chosen}"]) == pytest.approx(share, rel=1e-9)
        assert float(d @ d / (g @ g)) == pytest.approx(1 - share, rel=1e-9)
        assert float(d @ g / (g @ g)) == pytest.approx(1 - share, rel=1e-9)


def test_rank_takes_out_what_as_many_random_directions_hold():
    shares, expected = [], []
    for row, g, d, spec in _steps("negative-rank", 20):
        removed = float(row["share_removed"])
        assert float(d @ d / (g @ g)) == pytest.approx(1 - removed, rel=1e-9)
        shares.append(removed)
        expected.append(int(row["n_negative"]) / spec.size)
    assert sum(shares) == pytest.approx(sum(expected), rel=0.2)
    assert len(set(shares)) == len(shares)


def test_k_limits_what_controls_take_out():
    (row, g, _, spec), *_ = _steps("negative-energy", 1, k=2)
    largest = ce.select(spec, 0.05, "negative", 2)
    share = float(spec.project(g, largest).square().sum() / g.square().sum())
    assert float(row["share_removed"]) == pytest.approx(share, rel=1e-9)


def test_noise_stays_in_the_directions_of_its_set():
    for row, g, d, spec in _steps("negative-noise", 3, noise=0.1):
        assert row["share_removed"] == "0.0"
        mask, extra = ce.select(spec, 0.05, "negative"), d - g
        assert float(extra.norm()) > 0.1
        values = spec.eigenvalues  # two decompositions turn the space by rounding / gap at most (Davis and Kahan)
        gap = float(values[values > 0].min() - values[values < 0].max())
        turned = 100 * 2.2e-16 * float(values.abs().max()) / gap
        assert float((spec.project(extra, mask) - extra).norm()) < max(turned, 1e-9) * float(extra.norm())


def test_draws_are_not_those_of_the_batches_or_of_other_runs():
    a, b = _training("negative-energy"), _training("positive-energy")
    assert not torch.equal(a.generator.get_state(), b.generator.get_state())
    assert isinstance(a, training.Training)


@pytest.mark.parametrize("chosen", ["dominant", "bulk"])
def test_dominant_sets_and_their_controls(chosen):
    """The step of the set leaves out, or keeps, the part in the k largest eigenvectors; controls as large a part."""
    for kind in ("", "-energy", "-rank"):
        for row, g, d, spec in _steps(chosen + kind, 3, k=3):
            V = spec.eigenvectors(slice(-3, None))
            inside = V @ (V.T @ g)
            share = float(inside @ inside / (g @ g))
            share = share if chosen == "dominant" else 1 - share
            if kind == "":
                torch.testing.assert_close(d, g - inside if chosen == "dominant" else inside, rtol=0, atol=1e-9)
            if kind == "-rank":  # of P random dimensions 3, or all but 3
                share = float(row["share_removed"])
                assert share < 0.02 if chosen == "dominant" else share > 0.98
            assert float(row["share_removed"]) == pytest.approx(share, rel=1e-9)
            assert float(d @ d / (g @ g)) == pytest.approx(1 - share, rel=1e-6)


def test_bulk_noise_lies_outside_of_the_dominant_space():
    for row, g, d, spec in _steps("bulk-noise", 2, k=3, noise=0.1):
        assert row["share_removed"] == "0.0"
        extra, V = d - g, spec.eigenvectors(slice(-3, None))
        assert float(extra.norm()) == pytest.approx(0.1 * math.sqrt(len(g) - 3), rel=0.1)
        assert float((V.T @ extra).norm()) < 1e-10


def test_more_directions_than_a_batch_determines_end_a_run_by_name():
    t = _training("dominant", k=500)
    assert t.advance() == b""
    assert "k: 500 dominant directions" in t.failure["error"]

"""Scalars of the wrong kind, given to every public function that takes some: an error that names the argument."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import chaos_ext as ce
from chaos_ext import chaos, data, figures, metrics, models, systems

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(6) % 3
CE, T = nn.CrossEntropyLoss(), torch.arange(1, 40.0)


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def _sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


MODEL = _net()
OP = ce.HessianOperator(MODEL, CE, X, Y)
SPEC = ce.spectrum(OP)
VALUES, HENON, ONES = SPEC.eigenvalues.clone(), systems.henon(), torch.ones(31, dtype=torch.float64)
THETAS = torch.stack([nn.utils.parameters_to_vector(MODEL.parameters()).detach()] * 2)


class Own(torch.optim.Optimizer):
    """To be registered."""


def _covariant(**options):
    options = {"steps": 20, "k": 2, "transient": 10, "settle": 10, **options}
    return ce.covariant_vectors(HENON.step, HENON.tangent, HENON.x0, **options)


def _exponents(**options):
    return ce.lyapunov_spectrum(HENON.step, HENON.tangent, HENON.x0, **{"steps": 20, **options})


# Function, what it is given else, and the kind of each scalar: of an int, a float, a dtype or a name; "?": or None.
CALLS = {
    "CGD": (
        lambda **k: ce.CGD(_net().parameters(), **{"prune": "negative", **k}),
        {
            **dict.fromkeys(("mix", "switch_decay"), "float"),
            "start": "int",
            "order": "name",
            "threshold": "name",
            **dict.fromkeys(("k", "stop", "refresh_every"), "int?"),
            "prune": "name?",
            "spectrum_dtype": "dtype?",
            **dict.fromkeys(("noise", "zero_tol", "refresh_tol", "switch_share"), "float?"),
        },
    ),
    "local_lyapunov_exponents": (lambda **k: ce.local_lyapunov_exponents(VALUES, **{"lr": 0.1, **k}), {"lr": "float"}),
    "lle_spectrum": (lambda **k: ce.lle_spectrum(SPEC, **{"lr": 0.1, **k}), {"lr": "float"}),
    "select": (
        lambda **k: ce.select(SPEC, **{"lr": 0.1, **k}),
        {
            "lr": "float",
            "prune": "name?",
            "k": "int?",
            "order": "name",
            "upper": "float?",
            "sign": "float",
            "shift": "float",
        },
    ),
    "spectral_summary": (lambda **k: ce.spectral_summary(SPEC, **{"lr": 0.1, **k}), {"lr": "float"}),
    "check_selection": (
        lambda **k: chaos.check_selection(**{"prune": "negative", "k": 1, "order": "top_abs", "size": 3, **k}),
        {"prune": "name?", "k": "int?", "order": "name", "size": "int?"},
    ),
    "count_signs": (lambda **k: ce.count_signs(VALUES, **k), {"steps": "int", "tol": "float"}),
    "kaplan_yorke_dimension": (lambda **k: ce.kaplan_yorke_dimension(VALUES, **k), {"size": "int?"}),
    "covariant_vectors": (
        _covariant,
        {
            **dict.fromkeys(("steps", "transient", "settle", "every", "seed"), "int"),
            "tol": "float",
            **dict.fromkeys(("k", "expanding", "neutral"), "int?"),
            "memory_budget": "float?",
        },
    ),
    "lyapunov_spectrum": (
        _exponents,
        {
            "steps": "int",
            "transient": "int",
            "k": "int?",
            "qr_every": "int",
            "seed": "int",
            "method": "name",
        },
    ),
    "LyapunovAnalyzer": (
        lambda **k: ce.LyapunovAnalyzer(m := _net(), _sgd(m), **k),
        {
            "k": "int?",
            "method": "name",
            "state": "name",
            "qr_every": "int",
            "transient": "int",
            "jacobian": "name",
            "seed": "int",
            "memory_budget": "float?",
            "every": "int?",
            "neutral_tol": "float?",
        },
    ),
    "TangentMap": (lambda **k: ce.TangentMap(_sgd(_net()), **k), {"state": "name", "jacobian": "name"}),
    "Recorder": (lambda **k: ce.Recorder(m := _net(), _sgd(m), print, **k), {"every": "int", "k": "int"}),
    "Ensemble": (lambda **k: ce.Ensemble(m := _net(), CE, _sgd(m), THETAS, **k), {"every": "int"}),
    "batches": (
        lambda **k: list(data.batches(**{"n": 10, "batch_size": 2, "seed": 0, "epoch": 0, **k})),
        dict.fromkeys(("n", "batch_size", "seed", "epoch"), "int"),
    ),
    "BatchOrder": (
        lambda **k: data.BatchOrder(**{"n": 10, "batch_size": 2, "seed": 0, **k}),
        dict.fromkeys(("n", "batch_size", "seed"), "int"),
    ),
    "load": (lambda **k: data.load(k.get("data", "digits")), {"data": "name"}),
    "directions": (lambda **k: ce.directions(OP, **k), {"zero_tol": "float?", "spectrum_dtype": "dtype?"}),
    "spectrum": (
        lambda **k: ce.spectrum(OP, **k),
        {
            "k": "int?",
            "which": "name",
            "zero_tol": "float?",
            "spectrum_dtype": "dtype?",
            "tol": "float?",
            "max_products": "int?",
        },
    ),
    "spectrum of k": (
        lambda **k: ce.spectrum(OP, **{"k": 2, **k}),
        {
            "which": "name",
            "zero_tol": "float?",
            "spectrum_dtype": "dtype?",
            "tol": "float?",
            "max_products": "int?",
        },
    ),
    "spectra_per_layer": (
        lambda **k: ce.spectra_per_layer(_net(), CE, X, Y, **k),
        {
            "by": "name",
            "k": "int?",
            "which": "name",
            "zero_tol": "float?",
            "spectrum_dtype": "dtype?",
        },
    ),
    "spectral_density": (
        lambda **k: ce.spectral_density(OP, **{"steps": 5, "probes": 2, **k}),
        {
            "probes": "int",
            "steps": "int",
            "points": "int",
            "width": "float?",
        },
    ),
    "trace": (lambda **k: ce.trace(OP, **{"exact": False, "products": 9, **k}), {"products": "int"}),
    "frobenius_norm": (lambda **k: ce.frobenius_norm(OP, **{"exact": False, "products": 9, **k}), {"products": "int"}),
    "solve": (
        lambda **k: ce.solve(OP, ONES, **{"damping": 100.0, **k}),
        {
            "damping": "float",
            "tol": "float?",
            "max_products": "int?",
        },
    ),
    "distance_to_threshold": (
        lambda **k: ce.distance_to_threshold(**{"source": 1.0, "opt": _sgd(_net()), **k}),
        {"source": "float", "regime": "name"},
    ),
    "sharpness_dimension": (lambda **k: ce.sharpness_dimension([SPEC], **{"lr": 0.1, **k}), {"lr": "float?"}),
    "batch_sharpness_over": (
        lambda **k: metrics.batch_sharpness_over([OP, OP], **k),
        {"definition": "name", "level": "float"},
    ),
    "fit_divergence": (
        lambda **k: ce.fit_divergence(T, (0.1 * T).sqrt(), **{"resamples": 20, **k}),
        {
            "errors": "name",
            "level": "float",
            "resamples": "int",
            "block": "int?",
            "seed": "int",
        },
    ),
    "perturb": (lambda **k: ce.perturb(_net(), ONES, **{"eps": 1e-3, **k}), {"eps": "float"}),
    "register_tangent": (lambda **k: ce.register_tangent(Own, print, **k), {"buffers": "int"}),
    "HessianOperator": (lambda **k: ce.HessianOperator(_net(), CE, X, Y, **k), {"memory_budget": "float?"}),
    "GGNOperator": (lambda **k: ce.GGNOperator(_net(), CE, X, Y, **k), {"memory_budget": "float?"}),
    "FisherOperator": (
        lambda **k: ce.FisherOperator(_net(), CE, X, Y, **{"kind": "sampled", **k}),
        {
            "kind": "name",
            "samples": "int",
            "memory_budget": "float?",
        },
    ),
    "DatasetHessian": (
        lambda **k: ce.DatasetHessian(_net(), CE, [(X, Y)], **k),
        {
            "memory_budget": "float?",
            "keep": "int",
        },
    ),
    "eigenvalue_gradient": (lambda **k: OP.eigenvalue_gradient(SPEC, **{"i": 3, **k}), {"tol": "float?"}),
    "paper_mlp": (
        models.paper_mlp,
        {
            **dict.fromkeys(("inputs", "hidden", "classes"), "int"),
            "activation": "name",
            "seed": "int?",
        },
    ),
    "paper_cnn": (models.paper_cnn, {"base": "int", "classes": "int", "activation": "name", "seed": "int?"}),
    "activation_module": (lambda **k: models.activation_module(k.get("activation", "relu")), {"activation": "name"}),
    "plot_lle": (lambda **k: figures.plot_lle(VALUES, **{"lr": 0.1, **k}), {"lr": "float"}),
    "plot_spectrum": (lambda **k: figures.plot_spectrum(SPEC, **k), {"lr": "float?"}),
    "plot_training": (lambda **k: figures.plot_training({"sgd": [1.0, 2.0]}, **k), {"window": "int"}),
    "smooth": (lambda **k: figures.smooth([1.0, 2.0], **{"window": 2, **k}), {"window": "int"}),
    "logistic": (systems.logistic, {"r": "float"}),
    "henon": (systems.henon, {"a": "float", "b": "float"}),
    "lozi": (systems.lozi, {"a": "float", "b": "float"}),
    "ikeda": (systems.ikeda, {"u": "float", "kappa": "float", "alpha": "float"}),
    "standard_map": (systems.standard_map, {"K": "float"}),
    "lorenz63": (systems.lorenz63, dict.fromkeys(("sigma", "rho", "beta", "dt"), "float")),
    "lorenz96": (systems.lorenz96, {"n": "int", "forcing": "float", "dt": "float"}),
    "runge_kutta": (lambda **k: systems.runge_kutta(HENON.step, HENON.tangent, **{"dt": 0.1, **k}), {"dt": "float"}),
}
WRONG = {
    "int": ["a", None, float("nan"), 1.5, True, torch.ones(2), []],
    "float": ["a", None, float("nan"), torch.ones(2), torch.tensor(1j), [], True, 1j],
    "name": [3, "nonsense", [], True],
    "dtype": ["a", 3, torch.int64, torch.float16],
}


@pytest.mark.parametrize("function", CALLS)
def test_a_scalar_of_the_wrong_kind_is_refused_by_name(function):
    call, scalars = CALLS[function]
    call()
    for name, kind in scalars.items():
        wrong = [v for v in WRONG[kind.rstrip("?")] if v is not None or not kind.endswith("?")]
        for value in wrong:
            with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b.*: expected"):
                call(**{name: value})


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), torch.tensor([0.1], dtype=torch.float64)])
def test_numbers_of_every_kind_are_taken(lr):
    expected = ce.local_lyapunov_exponents(VALUES, 0.1)
    torch.testing.assert_close(ce.local_lyapunov_exponents(VALUES, lr), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ce.local_lyapunov_exponents(VALUES, expected.numpy()[:1].dtype.type(0.1)), expected)
    assert ce.HessianOperator(MODEL, CE, X, Y, memory_budget=1e9).dense().shape == (31, 31)

"""The command ``chaos-ext doctor``: the build, numbers against closed forms and autograd, and what is not installed."""

from __future__ import annotations

import argparse
import importlib.util
import math
import platform
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

import chaos_ext as ce

# package -> its name to pip, what it is for
_OPTIONAL = {
    "matplotlib": ("matplotlib", "figures, and every study"),
    "sklearn": ("scikit-learn", "the embedded data set, digits"),
    "torchvision": ("torchvision", "reading USPS and FashionMNIST"),
    "tqdm": ("tqdm", "progress bars"),
    "scipy": ("scipy", "fit_divergence, to_scipy, and finite-time exponents in less time"),
}


class Check(NamedTuple):
    """One number that is known otherwise.

    Attributes:
        name: what is compared with what.
        error: relative, largest entry.
        limit: above it the installation is wrong.
    """

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """NaN does not."""
        return self.error <= self.limit


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Prints what was found.

    Args:
        args: none are used.
        parser: of these.

    Returns:
        The exit status: 0, or 1 if a number is wrong.
    """
    _print_build()
    print("\nNumbers, against closed forms and autograd:")
    start, wrong = time.perf_counter(), 0
    for check in checks():
        wrong += not check.passed
        sign = "ok   " if check.passed else "WRONG"
        print(f"  {sign} {check.name}: {check.error:.1e} (at most {check.limit:.0e})")
    print(f"  in {time.perf_counter() - start:.1f} s")
    _print_missing()
    print(f"\n{wrong} number(s) WRONG: do not trust this installation; build it again." if wrong else "\nAll is well.")
    return int(wrong > 0)


def _print_build() -> None:
    info = ce.build_info()
    python = f"Python {platform.python_version()}, {platform.machine()}"
    print(f"chaos_ext {info['version']}, torch {info['torch']}, {python}")
    print(f"CPU kernels: {info['cpu_capability']}, compiled by {info['compiler']}")
    if info["cuda_usable"]:
        print(f"CUDA kernels: loaded, {info['cuda_devices']} device(s)")
    elif info["cuda"]:
        print("CUDA kernels: loaded, but torch sees no device")
    elif info["cuda_built"]:
        print(f"CUDA kernels: built, not loaded: {info['cuda_error']}")
    else:
        print("CUDA kernels: not built (needs nvcc and a CUDA build of torch; the CPU needs neither)")


def _print_missing() -> None:
    missing = {m: p for m, p in _OPTIONAL.items() if importlib.util.find_spec(m) is None}
    print("\nOptional packages: " + ("all there" if not missing else ""))
    for package, purpose in missing.values():
        print(f"  {package} is missing: {purpose}")
    if missing:
        print(f"  pip install {' '.join(package for package, _ in missing.values())}")


def checks() -> Iterator[Check]:
    """Every check, one after the other; torch's generator is left as it was."""
    usable = ce.build_info()["cuda_usable"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for make in (*_CHECKS, *((_cuda,) if usable else ())):
            try:
                yield from make()
            except Exception as error:  # which is no number either
                yield Check(f"{make.__name__.strip('_')}: {type(error).__name__}: {error}", math.nan, 0.0)


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def _network(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7, device="cpu"), nn.Tanh(), nn.Linear(7, 4, device="cpu")).double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    x = torch.randn(5, 6, dtype=torch.float64, generator=generator, device="cpu")
    return model.to(dtype), nn.CrossEntropyLoss(), x.to(dtype), torch.arange(5, device="cpu") % 4


def _closed_form() -> Iterator[Check]:
    """Linear regression: H = 2 / (N O) I_O (x) X^T X."""
    model, x = nn.Linear(4, 3, bias=False, device="cpu").double(), torch.randn(6, 4, dtype=torch.float64, device="cpu")
    H = ce.HessianOperator(model, nn.MSELoss(), x, x.new_zeros(6, 3)).dense()
    exact = 2 / 18 * torch.kron(torch.eye(3, dtype=torch.float64, device=x.device), x.T @ x)
    yield Check("Hessian of linear regression", _relative(H, exact), 1e-12)


def _double_backward() -> Iterator[Check]:
    model, loss_fn, x, y = _network()
    parameters = list(model.parameters())
    parts = torch.autograd.grad(loss_fn(model(x), y), parameters, create_graph=True)
    gradient = torch.cat([g.flatten() for g in parts])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True) for g in gradient]
    theirs = torch.stack([torch.cat([r.flatten() for r in row]) for row in rows])
    op = ce.HessianOperator(model, loss_fn, x, y)
    yield Check("gradient of a network, autograd", _relative(op.gradient, gradient.detach()), 1e-12)
    yield Check("Hessian of a network, double backward", _relative(op.dense(), theirs), 1e-10)
    v = torch.randn(len(theirs), 3, dtype=torch.float64, device="cpu")
    yield Check("products with three vectors", _relative(op @ v, theirs @ v), 1e-10)


def _compressed() -> Iterator[Check]:
    op = ce.HessianOperator(*_network())
    spec, values = ce.spectrum(op), torch.linalg.eigvalsh(op.dense())
    found = torch.cat([spec.eigenvalues, spec.eigenvalues.new_zeros(spec.nullity or 0)]).sort().values
    yield Check("eigenvalues, LAPACK on the dense matrix", _relative(found, values), 1e-10)
    V = spec.eigenvectors()
    yield Check("eigenvectors, H v - lambda v", _relative(op.dense() @ V, V * spec.eigenvalues), 1e-9)


def _single() -> Iterator[Check]:
    H, exact = (ce.HessianOperator(*_network(dtype)).dense() for dtype in (torch.float32, torch.float64))
    yield Check("Hessian in float32, that in float64", _relative(H, exact), 1e-4)


def _step() -> Iterator[Check]:
    model, loss_fn, x, y = _network()
    ours = ce.CGD(model.parameters(), lr=0.1, momentum=0.9, prune=None)
    for _ in range(3):
        ours.step(ce.HessianOperator(model, loss_fn, x, y))
    other = _network()[0]
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, foreach=False, fused=False)
    for _ in range(3):
        theirs.zero_grad()
        loss_fn(other(x), y).backward()
        theirs.step()
    a, b = (nn.utils.parameters_to_vector(m.parameters()).detach() for m in (model, other))
    yield Check("three steps of CGD(prune=None), torch.optim.SGD", _relative(a, b), 1e-12)


def _exponents() -> Iterator[Check]:
    """Arnold's cat map: the logarithm of the golden ratio squared."""
    s = ce.systems.cat_map()
    found = ce.lyapunov_spectrum(s.step, s.tangent, s.x0, steps=200, transient=50)
    exact = math.log((3 + math.sqrt(5)) / 2)
    yield Check(
        "Lyapunov exponents of the cat map",
        _relative(found, torch.tensor([exact, -exact], dtype=torch.float64, device="cpu")),
        1e-6,
    )


def _finite_time() -> Iterator[Check]:
    """A product whose singular values span 1000 orders of magnitude: diag(2, 1/2, 10^-5)^200."""
    factors = torch.tensor([2.0, 0.5, 1e-5], dtype=torch.float64, device="cpu")
    tangent: Callable[[Tensor, Tensor], Tensor] = lambda x, V: factors.unsqueeze(1) * V  # noqa: E731
    found = ce.lyapunov_spectrum(lambda x: factors * x, tangent, factors, steps=200, method="svd")
    yield Check("finite-time exponents of a diagonal map", _relative(found, factors.log()), 1e-12)


def _cuda() -> Iterator[Check]:
    model, loss_fn, x, y = _network()
    here = ce.HessianOperator(model, loss_fn, x, y).dense()
    there = ce.HessianOperator(model.cuda(), loss_fn, x.cuda(), y.cuda()).dense().cpu()
    yield Check("Hessian on the GPU, that on the CPU", _relative(there, here), 1e-10)


_CHECKS = (_closed_form, _double_backward, _compressed, _single, _step, _exponents, _finite_time)

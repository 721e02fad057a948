"""docs/support.md: which layer takes which path in which mode and dtype. ``CHAOS_EXT_WRITE_DOCS=1`` rewrites it."""

import os
from pathlib import Path

import architectures as arch
import functions_table as functions
import pytest
import torch
from oracles import double_backward
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce

DOC = Path(__file__).resolve().parent.parent / "docs" / "support.md"
TOKENS = {"Embedding": lambda: arch.Tokens(), "Embedding padding_idx": lambda: arch.Tokens(padding_idx=2)}
SECTIONS = {
    "Layers": {**arch.LAYERS, **functions.MODULES},
    "Functions": functions.FUNCTIONS,
    "Indices": {name: (make, None) for name, make in TOKENS.items()},
    "Graphs": {**arch.GRAPHS, **functions.GRAPHS},
    "Layers by torch's derivatives": arch.AUTOMATIC,
}
HEADER = """# What is supported

Written by `CHAOS_EXT_WRITE_DOCS=1 pytest python_tests/test_support_table.py`, from the table of networks that the tests
compare with double backward. **rule**: every layer of the network has a layer rule. **torch**: some layer is
differentiated by torch, alone, inside a graph of rules. **whole**: torch differentiates the model. **refused**: an
error that says why. *dense*: where each parametrised layer of the network enters, U at its units, P at its parameters.
The Hessian was within 1e-10 (float64) or 1e-4 (float32) of float64 double backward for every entry.
"""

FOOTER = """
## What a forward or a loss may do

Each is tested by name in `test_checkpoints.py`, `test_derivatives_inside.py` and `test_surrogates.py`.

- `checkpoint(..., use_reentrant=False)`, nested, in a loss, around BatchNorm in training mode: exact. With
  `use_reentrant=True`, or around a part that computes something else when it runs again: refused.
- `torch.autograd.grad(..., create_graph=True)` and `torch.func` (grad, jacrev, jacfwd, hessian, jvp, vjp): exact.
  Without `create_graph=True`, or by a loss with respect to a list of Parameters that it holds: refused.
- `detach`, `.data`, `no_grad`, `item`: H is that of the loss in which these are constants, with a warning where the
  gradient moves with them.
- `weight_norm`, `spectral_norm` and `orthogonal`, as hooks or parametrizations, several inputs in a tuple or a dict,
  outputs in a dict, a tuple or a dataclass with a loss that takes them apart, a loss with parameters of its own
  (constants to H): exact, by torch as a whole; `AveragedModel`, `DistributedDataParallel` and `DataParallel` on one
  device: the rules of the model inside.
- `nn.Hardsigmoid`: its slope is 1/6 also in float64, where torch's backward takes 1/6 rounded to float32, so that a
  float64 gradient differs from torch's by 3e-8. So does that of `nn.CELU`, whose 1 / alpha torch rounds.
- Saturated activations: exact where torch's own lose digits (the tail of GELU) or are NaN (Mish from 89 on in float32).
- Clipping of gradients (`clip_grad_norm_`, `clip_grad_value_`) is no part of `CGD` or of tangent maps. `CGD.step`
  with an operator or a spectrum takes the gradient from there and does not read `.grad`, clipped or not; with a dense
  H it prunes `.grad` as it is. A tangent map is the derivative of the step without clipping: of a training that clips
  it is the map of another step wherever the clip acts. Hooks that clip are refused by name.
- An autograd Function of one's own, a hook: exact where it gives the derivative of its forward, which is asked on
  every batch, with a warning where differences do not settle. Where it gives something else (a straight-through
  estimator, a reversed or clipped gradient, `fake_quantize`, `scale_grad_by_freq`): refused, or, if differences of
  gradients confirm H, as for a multiple of the whole gradient, a warning. The gradient itself is torch's:
  `op.gradient` and `CGD(prune=None)` work.
"""


def _model(make, shape, dtype, training):
    torch.manual_seed(0)
    model = make().to(dtype).train(training)
    x = torch.randint(7, (3, 5)) if shape is None else torch.randn(3, *shape).to(dtype)
    return model, x, torch.arange(3)


def _cell(make, shape, dtype, training) -> str:
    model, x, y = _model(make, shape, dtype, training)
    try:
        op = ce.HessianOperator(model, F.cross_entropy, x, y)
    except ce.UnsupportedError:
        return "refused"
    report = op.explain()
    H = op.dense().double()
    wide = x.double() if x.is_floating_point() else x
    expected = double_backward(model.double(), F.cross_entropy, wide, y)
    assert (H - expected).norm() <= (1e-10 if dtype == torch.float64 else 1e-4) * expected.norm()
    if report[0].name == "(model)":
        return "whole"
    kind = "torch" if any(r.path.startswith("torch") for r in report) else "rule"
    return f"{kind} {''.join({'enter at units': 'U', 'enter at parameters': 'P'}.get(r.path, '') for r in report)}"


def _section(title, table) -> str:
    rows = [
        f"\n## {title}\n",
        "| | eval, float64 | eval, float32 | train, float64 | train, float32 |",
        "|---|---|---|---|---|",
    ]
    for name, (make, shape) in table.items():
        cells = [_cell(make, shape, d, t) for t in (False, True) for d in (torch.float64, torch.float32)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def test_the_documented_table_is_true():
    text = HEADER + "".join(_section(title, table) for title, table in SECTIONS.items()) + FOOTER
    if os.environ.get("CHAOS_EXT_WRITE_DOCS"):
        DOC.write_text(text)
    if not DOC.exists():
        pytest.skip("docs/ is not beside the tests")
    assert DOC.read_text() == text


def test_every_rule_of_the_package_is_in_the_table():
    """A module class with a rule and no network that tests it is a gap."""
    from chaos_ext.rules import table as layer_table

    used = set()
    for make, _ in (case for table in SECTIONS.values() for case in table.values()):
        used |= {type(m) for m in make().modules()}
    activations = {nn.SELU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.Softplus, nn.GELU, nn.Hardtanh, nn.ReLU6, nn.SiLU}
    activations |= {nn.Hardsigmoid, nn.RReLU}  # torch cannot differentiate the one twice, the other draws
    assert sorted(c.__name__ for c in layer_table._builtin - used - activations) == []

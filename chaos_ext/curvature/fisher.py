"""Fisher matrices and the covariance of gradients: sums of outer products of gradients of single samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..base.arguments import cpu_generator, require_int
from ..base.blocks import Chosen
from ..base.torch_internals import without_grad
from ..errors import UnsupportedError
from ..rules.losses import ElementwiseLoss, SoftmaxLoss, as_module
from .diagonal import has_samples
from .ggn import GGNOperator
from .jacobian import Jacobian, TapeJacobian, gram_of
from .layerwise import LayerwiseEngine
from .roots import others
from .tape import Tape

KINDS = ("empirical", "sampled", "covariance")
_CHUNK = 64


class SampleRoot:
    """L [M, N S]: column (n, s) is zero outside of sample n, and u_ns there.

    Args:
        columns: u [N, outputs of a sample, S].
        counted: [N] of samples whose mean is taken from what L is applied to; None: no mean is.
    """

    def __init__(self, columns: Tensor, counted: Tensor | None = None) -> None:
        self._u, self._counted = columns, counted
        self.signs = columns.new_ones(columns.shape[0] * columns.shape[2])

    def _centred(self, c: Tensor) -> Tensor:
        if self._counted is None:
            return c
        counted = self._counted.to(c).unsqueeze(1)
        return counted * (c - (counted * c).sum(0) / counted.sum().clamp_min(1))

    def apply(self, c: Tensor) -> Tensor:
        n, _, s = self._u.shape
        return torch.bmm(self._u, self._centred(c).reshape(n, s, c.shape[1])).reshape(-1, c.shape[1])

    def transposed(self, u: Tensor) -> Tensor:
        n, own, _ = self._u.shape
        return self._centred(torch.bmm(self._u.transpose(1, 2), u.reshape(n, own, -1)).reshape(-1, u.shape[1]))


class OuterProducts:
    """A Jacobian with another curvature at the output: L L^T."""

    lasting = has_root = True

    def __init__(self, jacobian: TapeJacobian, root: SampleRoot) -> None:
        self._J, self.root = jacobian, root
        self.outputs, self.size, self.dtype = jacobian.outputs, jacobian.size, jacobian.dtype
        self.device, self.push, self.pull = jacobian.device, jacobian.push, jacobian.pull

    def curve(self, u: Tensor) -> Tensor:
        return self.root.apply(self.root.transposed(u))

    def gram(self) -> Tensor:
        return gram_of(self, _CHUNK)


class FisherOperator(GGNOperator):
    r"""A Fisher matrix [P, P] of ``loss_fn(model(x), y)``, or the covariance of its samples' gradients.

    The loss of the batch is the mean (or the sum) over samples of losses l_n. With g_n = dl_n/dtheta,

        "empirical"    (1/K) sum_n g_n g_n^T    K = N, or 1 for a sum
        "sampled"      the same with labels drawn from the model's own prediction, ``samples`` of each input: unbiased
                       for the Gauss-Newton matrix of the same loss, which is the Fisher matrix proper
        "covariance"   (1/N) sum_n (g_n - g)(g_n - g)^T,  g the mean of the g_n

    over the samples that are not ignored. Drawn from: the softmax of the output for cross-entropy, its sigmoid for
    binary cross-entropy, a Gaussian around it for squared errors. An operator like ``GGNOperator``: products, dense,
    diagonal and exact spectrum, of rank at most N (times ``samples``). Kronecker factors (KFAC) are no part of this
    package.

    Example:
        >>> fisher = ce.FisherOperator(model, loss_fn, x, y)
        >>> len(ce.spectrum(fisher).eigenvalues) <= len(x)
        True

    Args:
        model, loss_fn, x, y: as of ``HessianOperator``; layers and the loss need rules, and samples must not interact.
        kind: "empirical", "sampled" or "covariance".
        samples: labels that are drawn for each input, of "sampled".
        params: as of ``HessianOperator``: that diagonal block.
        generator: of the CPU, for the labels; None: a fresh one with seed 0. The global generator is not touched.
        memory_budget: bytes that a dense result may take; default: the memory that is available.
        group: as of ``GGNOperator``.

    Raises:
        ValueError, TypeError, NonFiniteError: as of ``HessianOperator``; an unknown kind, samples below 1.
        UnsupportedError: a model or loss without rules, samples that interact (BatchNorm in training mode), class
            weights in a mean, whose samples have no losses of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        x: object,
        y: object,
        kind: str = "empirical",
        *,
        samples: int = 1,
        generator: torch.Generator | None = None,
        params: Chosen | None = None,
        memory_budget: int | None = None,
        group: object = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
        require_int("samples", samples, 1)
        super().__init__(model, loss_fn, x, y, params=params, memory_budget=memory_budget, group=group)
        self.kind, self._samples, self._y, self._module = kind, samples, y, as_module(loss_fn)
        if not isinstance(self._engine, LayerwiseEngine):
            raise UnsupportedError(f"FisherOperator: needs layer rules, and {self._why}")
        tape = self._engine.tape(self.dtype)
        if not has_samples(tape):
            raise UnsupportedError(
                "FisherOperator: the samples of this batch interact (BatchNorm in training mode, say), so that none "
                "has a gradient of its own; call .eval() on the model, or use GGNOperator"
            )
        self._draws = _drawn(tape, samples, generator) if kind == "sampled" else None
        self._root(tape)  # what it refuses, at once

    def curvature_along(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """Refused: gradients of single samples, and labels that are drawn from the model, would change with theta."""
        raise UnsupportedError(
            f"eigenvalue_gradient: not of a FisherOperator ({self.kind}), whose samples' gradients and labels change "
            "with theta; take GGNOperator, or HessianOperator"
        )

    def _of_tape(self, tape: Tape) -> Jacobian:
        return OuterProducts(TapeJacobian(tape, self.space), self._root(tape))

    @without_grad
    def _root(self, tape: Tape) -> SampleRoot:
        n = len(tape.output)
        if self._draws is not None:
            return SampleRoot(_sampled(tape, self._draws) / self._samples**0.5)
        delta = tape.loss.delta.reshape(n, -1, 1)
        count = int(self._counted.sum())
        mean = self._module.reduction == "mean"
        if self.kind == "empirical":
            return SampleRoot(delta * (count if mean else 1) ** 0.5)
        scale = count**0.5 if mean else max(count, 1) ** -0.5  # of no samples nothing is left anyway
        return SampleRoot(delta * scale, self._counted)

    @cached_property
    def _counted(self) -> Tensor:
        """Which samples have a loss [N].

        Raises:
            UnsupportedError: the mean is not one over samples.
        """
        y: Any = self._y
        everything = torch.ones(len(y), dtype=torch.bool, device=self.device)
        if not isinstance(self._module, nn.CrossEntropyLoss) or y.is_floating_point():
            return everything
        if self._module.weight is not None and self._module.reduction == "mean":
            raise UnsupportedError(
                "loss_fn.weight: the mean with class weights divides by their sum, so that samples have no losses "
                'whose mean it is; use reduction="sum", or no weights'
            )
        kept = (y != self._module.ignore_index).reshape(len(y), -1)
        if y.dim() > 1 and not bool(kept.all()) and self._module.reduction == "mean":
            raise UnsupportedError(
                "loss_fn.ignore_index: ignored positions within samples, in a mean, have no rule here"
            )
        return kept.any(1)


@without_grad
def _drawn(tape: Tape, samples: int, generator: torch.Generator | None) -> Tensor:
    """Labels for each row [rows, S], or each output [M, S]; of squared errors normal numbers."""
    own, (z, loss) = cpu_generator(generator), (tape.output, tape.loss)
    if isinstance(loss, SoftmaxLoss):
        found = torch.multinomial(loss.p.double().cpu(), samples, replacement=True, generator=own)
    elif isinstance(loss, ElementwiseLoss) and isinstance(loss.curvature, float):
        found = torch.randn(z.numel(), samples, dtype=torch.float64, generator=own, device="cpu")
    else:
        uniform = torch.rand(z.numel(), samples, dtype=torch.float64, generator=own, device="cpu")
        found = (uniform < z.double().sigmoid().reshape(-1, 1).cpu()).double()
    return found.to(z.device)


def _sampled(tape: Tape, draws: Tensor) -> Tensor:
    """Cotangents u [N, own, S] with E[u u^T] = C in each sample.

    sqrt(s) (p - onehot) of cross-entropy, sqrt(c / p (1 - p)) (p - label) of a binary one, sqrt(c) times normals. 1 - p
    is no difference: on a fitted batch nothing would be left of it.
    """
    z, loss = tape.output, tape.loss
    n, samples = len(z), draws.shape[1]
    if isinstance(loss, SoftmaxLoss):
        p, classes = loss.p.unsqueeze(2), torch.arange(loss.p.shape[1], device=z.device)
        rows = torch.where(classes[:, None] == draws.unsqueeze(1), -others(p), p) * loss.s.sqrt()[:, None, None]
        positions = z.shape[2:]
        return rows.reshape(n, *positions, z.shape[1], samples).movedim(-2, 1).reshape(n, -1, samples)
    assert isinstance(loss, ElementwiseLoss)
    if isinstance(loss.curvature, float):
        return (loss.curvature**0.5 * draws).to(z).reshape(n, -1, samples)
    p, q = z.sigmoid().reshape(-1, 1), (-z).sigmoid().reshape(-1, 1)
    weight = loss.curvature.reshape(-1, 1) / (p * q).clamp_min(torch.finfo(z.dtype).tiny)
    u = weight.sqrt() * torch.where(draws > 0.5, -q, p)
    return u.reshape(n, -1, samples)

"""Hessians of any nn.Module and any scalar loss: chunked forward-over-reverse, double backward where that fails.

Reverse mode is never the outer transform's inner jacobian: ``vmap`` of ``jvp`` of ``grad`` only. Mode, buffers,
``.grad`` and the global random state of the model are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from ..base import memory
from ..base.guards import twice_differentiable, without_running_stats
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.randomness import without_randomness
from ..base.tensors import asymmetry, symmetrize_
from ..base.torch_internals import tree_map
from ..base.traces import untouched
from ..errors import ChaosExtError, NonFiniteError, UnsupportedError

log = logging.getLogger("chaos_ext")

JVP_OF_GRAD, DOUBLE_BACKWARD = "jvp of grad", "double backward"
_MAX_CHUNK = 1024
_CHUNK_BYTES = 1 << 29


class _Scalar(nn.Module):
    """loss_fn(model(x), y) as one module, so that a loss that reads parameters sees the substituted ones."""

    def __init__(self, model: nn.Module, loss_fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = (loss_fn,)  # in a tuple: parameters of a loss module are constants, not part of theta

    def forward(self, x: object, y: object) -> tuple[Tensor, object]:
        try:
            output = self.model(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ForwardError(f"x: the model's forward failed on a batch of {describe(x)}: {e}") from e
        try:
            loss = self._loss[0](output, y)
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ForwardError(f"y: loss_fn failed on output {describe(output)} and y {describe(y)}: {e}") from e
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise ForwardError(f"loss_fn: expected a real scalar tensor, got {describe(loss)}; set a reduction")
        return loss.reshape(()), output


class ForwardError(ValueError):
    """The user's forward or loss raised: a mistake in an argument."""


def describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)} {value.dtype}"
    return type(value).__name__


class FunctionalEngine:
    """Loss, gradient and Hessian of loss_fn(model(x), y) with respect to theta, without rules for its layers.

    Args:
        path: JVP_OF_GRAD or DOUBLE_BACKWARD; default: the first, unless the loss holds on to parameters.

    Attributes:
        path: the way that products take now: DOUBLE_BACKWARD once the other has failed.
        loss: detached scalar.
        gradient: [P].
        output: what the model returned, detached.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        space: ParameterSpace,
        x: object,
        y: object,
        path: str | None = None,
    ) -> None:
        # Tensors made in inference mode cannot be saved for backward; their copies can.
        x, y = tree_map(lambda t: t.clone() if isinstance(t, Tensor) and t.is_inference() else t, (x, y))
        self.space, self._x, self._y, self._model = space, x, y, model
        self._watched = ModuleTree(model).watched
        self._scalar = _Scalar(model, loss_fn)
        self._names = ["model." + n for n in space.names]
        self.loss, self.output, self.gradient, captured = self._first_pass()
        if not (torch.isfinite(self.loss) and torch.isfinite(self.gradient).all()):
            raise NonFiniteError("loss: the loss or its gradient is NaN or inf on this batch")
        self.path = path or (DOUBLE_BACKWARD if captured else JVP_OF_GRAD)
        self._probed = False

    def _evaluate(self, params: Mapping[str, Tensor]) -> tuple[Tensor, object]:
        with untouched(self._watched), without_running_stats(self._model):
            buffers = {n: b.detach().clone() for n, b in self._scalar.named_buffers()}
            # A forward that edits its input in place edits a copy.
            x = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, self._x)
            return functional_call(self._scalar, {**buffers, **params}, (x, self._y))

    def _first_pass(self) -> tuple[Tensor, object, Tensor, bool]:
        """Loss, output and gradient; and whether the loss reads the Parameter objects past the substitution.

        Under ``torch.no_grad`` or ``inference_mode`` too: the caller's mode must not turn the gradient into zero.
        """
        with twice_differentiable():
            return self._differentiated()

    def _differentiated(self) -> tuple[Tensor, object, Tensor, bool]:
        copies = {n: p.detach().clone().requires_grad_() for n, p in zip(self._names, self.space.params, strict=True)}
        loss, output = without_randomness(lambda: self._evaluate(copies), self._model, self.space.device)
        if not loss.requires_grad:
            return loss.detach(), _detach(output), torch.zeros_like(self._theta()), False
        leaves = [*copies.values(), *self.space.params]
        parts = torch.autograd.grad(loss, leaves, allow_unused=True)
        inner, outer = parts[: len(copies)], parts[len(copies) :]
        captured = any(g is not None for g in outer)
        total = [
            sum((t for t in (a, b) if t is not None), torch.zeros_like(p))
            for a, b, p in zip(inner, outer, self.space.params, strict=True)
        ]
        return loss.detach(), _detach(output), self.space.flatten(total).detach(), captured

    def _theta(self) -> Tensor:
        return self.space.flatten([p.detach() for p in self.space.params])

    def _loss_at(self, theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in self.space.shapes])
        params = {n: t.view(s) for n, t, s in zip(self._names, parts, self.space.shapes, strict=True)}
        return self._evaluate(params)[0]

    def hvp(self, v: Tensor) -> Tensor:
        """H v for v [P, k], in chunks that respect the memory budget."""
        if not self._probed:
            self._probed = True
            self._probe()
        out = torch.empty_like(v)
        chunk = self._chunk()
        for i in range(0, v.shape[1], chunk):
            out[:, i : i + chunk] = self._rows(v[:, i : i + chunk].T.contiguous()).T
        return out

    def block_columns(self, dtype: torch.dtype) -> int:
        """Columns that are differentiated at a time."""
        return self._chunk()

    def _probe(self) -> None:
        """u^T H v = v^T H u, once: some of torch's second derivatives are wrong, and this shows it.

        (torch 2.14's ``_weight_norm`` on the CPU is off by its own scale, and differs from finite differences.)
        """
        for path in dict.fromkeys((self.path, DOUBLE_BACKWARD)):
            self.path = path
            if self._symmetric_at(None):
                return
        self._require_symmetric_nearby()

    def _symmetric_at(self, theta: Tensor | None) -> bool:
        generator = torch.Generator().manual_seed(0)
        pair = torch.randn(2, self.space.size, generator=generator, dtype=torch.float64, device="cpu").to(self.gradient)
        products = self._rows(pair, theta)
        gap = (pair[0] @ products[1] - pair[1] @ products[0]).abs()
        return bool(gap <= _asymmetry_limit(pair.dtype) * pair[0].norm() * products.norm())

    def _require_symmetric_nearby(self) -> None:
        """On a fitted batch only rounding is left of H, and is not symmetric; a wrong formula is so elsewhere too."""
        theta = self._theta()
        noise = torch.randn(
            len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64, device="cpu"
        ).to(theta)
        if any(self._symmetric_at(t) for t in (0.3 * noise, theta + 0.1 * theta.abs() * noise)):
            log.warning("the Hessian on this batch is at the level of torch's rounding; its symmetric part is used")
            return
        raise ChaosExtError(
            "hessian: torch's second derivatives of this model are not symmetric, so they are wrong; compare with "
            "finite differences of the gradient"
        )

    def dense_(self, out: Tensor) -> None:
        """Fills out [P, P] with H, exactly symmetric."""
        self._fill(out)
        if asymmetry(out) > _asymmetry_limit(out.dtype) and self.path != DOUBLE_BACKWARD:
            log.warning("forward-over-reverse gave an asymmetric Hessian; computing it by double backward instead")
            self.path = DOUBLE_BACKWARD
            self._fill(out)
        if asymmetry(out) > _asymmetry_limit(out.dtype):
            self._require_symmetric_nearby()
        symmetrize_(out)

    def _fill(self, out: Tensor) -> None:
        chunk = self._chunk()
        for i in range(0, len(out), chunk):
            rows = min(chunk, len(out) - i)
            eye = torch.zeros(rows, len(out), dtype=out.dtype, device=out.device)
            eye[:, i : i + rows].fill_diagonal_(1)
            out[i : i + rows] = self._rows(eye)

    def _chunk(self) -> int:
        """Columns at once: parameters, and the activations of the pass, are held a few times per column."""
        size = self.space.size * self.space.dtype.itemsize
        batch = sum(t.numel() * t.element_size() for t in (self._x, self.output) if isinstance(t, Tensor))
        budget = min(_CHUNK_BYTES, memory.available_bytes(self.space.device) // 4)
        return max(1, min(_MAX_CHUNK, self.space.size, budget // (4 * size + 32 * batch + 1)))

    def _rows(self, v: Tensor, theta: Tensor | None = None) -> Tensor:
        """H v for v [k, P], one tangent a row, at theta (default: the parameters)."""
        if self.path == JVP_OF_GRAD:
            try:
                gradient, at = grad(self._loss_at), self._theta() if theta is None else theta
                return vmap(lambda t: jvp(gradient, (at,), (t,))[1], randomness="error")(v).detach()
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ForwardError) as e:
                log.warning("forward-over-reverse failed (%s); using double backward", str(e).splitlines()[0])
                self.path = DOUBLE_BACKWARD
        # The parameters themselves, not copies: a loss may hold on to them.
        params = [p if p.is_leaf else p.detach().requires_grad_() for p in self.space.params]
        if theta is not None:
            parts = theta.split([s.numel() for s in self.space.shapes])
            params = [t.view(p.shape).clone().requires_grad_() for t, p in zip(parts, self.space.params, strict=True)]
        with twice_differentiable():  # CGD.step, for one, runs under no_grad
            return self._double_backward_rows(v, params)

    def _double_backward_rows(self, v: Tensor, params: list[Tensor]) -> Tensor:
        loss, _ = self._evaluate(dict(zip(self._names, params, strict=True)))
        if not loss.requires_grad:
            return torch.zeros_like(v)
        parts = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        g = self.space.flatten([torch.zeros_like(p) if t is None else t for t, p in zip(parts, params, strict=True)])
        if not g.requires_grad:
            return torch.zeros_like(v)

        def rows(block: Tensor, batched: bool) -> Tensor:
            t = torch.autograd.grad(g, params, block, retain_graph=True, is_grads_batched=batched, allow_unused=True)
            lead = block.shape[:1] if batched else ()
            full = [p.new_zeros(*lead, *p.shape) if u is None else u for u, p in zip(t, params, strict=True)]
            return torch.cat([u.reshape(*lead, -1) for u in full], -1)

        try:
            return rows(v, True).detach()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            try:
                return torch.stack([rows(r, False) for r in v]).detach()
            except RuntimeError as e:
                raise UnsupportedError(f"model: autograd cannot differentiate it twice: {e}") from e


def _detach(output: object) -> object:
    return output.detach() if isinstance(output, Tensor) else output


def _asymmetry_limit(dtype: torch.dtype) -> float:
    return 1e-3 if dtype == torch.float32 else 1e-8

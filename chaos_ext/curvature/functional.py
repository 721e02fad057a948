"""Hessians of any nn.Module and any scalar loss: chunked forward-over-reverse, double backward where that fails.

Reverse mode is never the outer transform's inner jacobian: ``vmap`` of ``jvp`` of ``grad`` only. Mode, buffers,
``.grad`` and the global random state of the model are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..base import memory
from ..base.guards import AutocastInside, dense_embeddings, refuse_edits, twice_differentiable, without_running_stats
from ..base.parameters import ModuleTree, ParameterSpace
from ..base.randomness import without_randomness
from ..base.tensors import all_finite, asymmetry, symmetrize_
from ..base.torch_internals import tree_map
from ..base.traces import untouched
from ..errors import ChaosExtError, NonFiniteError
from .dense import not_finite
from .products import double_backward, forward_over_reverse

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
        except ChaosExtError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ForwardError(forward_failed(x, e)) from e
        try:
            loss = self._loss[0](output, y)
        except ChaosExtError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            raise ForwardError(f"y: loss_fn failed on output {describe(output)} and y {describe(y)}: {e}") from e
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            raise ForwardError(f"loss_fn: expected a real scalar tensor, got {describe(loss)}; set a reduction")
        return loss.reshape(()), output


class ForwardError(ValueError):
    """The user's forward or loss raised: a mistake in an argument."""


def forward_failed(x: object, error: Exception) -> str:
    """What to say of a model that raised on x."""
    hint = "; x is passed whole, model(x): give a model of several inputs a forward that takes one tuple or dict"
    hint = hint if isinstance(error, TypeError) and "argument" in str(error) else ""
    return f"x: the model's forward failed on a batch of {describe(x)}: {error}{hint}"


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
        with untouched(self._watched), without_running_stats(self._model), dense_embeddings(self._model):
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
        loss, output = without_randomness(lambda: self._first(copies), self._model, self.space.device)
        self.unused = frozenset(range(len(copies)))  # parameters that the loss does not depend on
        if not loss.requires_grad:
            return loss.detach(), _detach(output), torch.zeros_like(self._theta()), False
        leaves = [*copies.values(), *self.space.params]
        parts = torch.autograd.grad(loss, leaves, allow_unused=True)
        parts = tuple(g.to_dense() if g is not None and g.layout != torch.strided else g for g in parts)
        inner, outer = parts[: len(copies)], parts[len(copies) :]
        self.unused = frozenset(i for i in self.unused if inner[i] is None and outer[i] is None)
        captured = any(g is not None for g in outer)
        total = [
            sum((t for t in (a, b) if t is not None), torch.zeros_like(p))
            for a, b, p in zip(inner, outer, self.space.params, strict=True)
        ]
        return loss.detach(), _detach(output), self.space.flatten(total).detach(), captured

    def _theta(self) -> Tensor:
        return self.space.flatten([p.detach() for p in self.space.params])

    def _first(self, params: Mapping[str, Tensor]) -> tuple[Tensor, object]:
        with AutocastInside(self.space.device), refuse_edits(list(params.items())):
            return self._evaluate(params)

    def _loss_at(self, *params: Tensor) -> Tensor:
        return self._evaluate(dict(zip(self._names, params, strict=True)))[0]

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
            if not all_finite(out[i : i + rows]):
                raise NonFiniteError(not_finite("H"))

    def _chunk(self) -> int:
        """Columns at once: parameters, and the activations of the pass, are held a few times per column."""
        size = self.space.size * self.space.dtype.itemsize
        batch = sum(t.numel() * t.element_size() for t in (self._x, self.output) if isinstance(t, Tensor))
        budget = min(_CHUNK_BYTES, memory.available_bytes(self.space.device) // 4)
        return max(1, min(_MAX_CHUNK, self.space.size, budget // (4 * size + 32 * batch + 1)))

    def _rows(self, v: Tensor, theta: Tensor | None = None) -> Tensor:
        """H v for v [k, P], one tangent a row, at theta (default: the parameters)."""
        tangents = tuple(self._separate(v))
        at = self.space.params if theta is None else [t[0] for t in self._separate(theta.unsqueeze(0))]
        parts = self._forward_over_reverse(at, tangents) if self.path == JVP_OF_GRAD else None
        if parts is None:
            with twice_differentiable():  # CGD.step, for one, runs under no_grad
                # The parameters themselves, not copies: a loss may hold on to them.
                params = [p if p.is_leaf and theta is None else p.detach().requires_grad_() for p in at]
                parts = double_backward(self._loss_at(*params), params, tangents)
        return torch.cat([t.detach().reshape(len(v), -1) for t in parts], 1)

    def _separate(self, v: Tensor) -> list[Tensor]:
        """Rows v [k, P] as tensors [k, *shape] with memory of their own."""
        parts = v.split_with_sizes(self.space.sizes, 1)
        return [t.clone().view(len(v), *s) for t, s in zip(parts, self.space.shapes, strict=True)]

    def _forward_over_reverse(self, at: Sequence[Tensor], tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """None, and double backward from now on, where torch cannot."""
        try:
            return forward_over_reverse(self._loss_at, tuple(p.detach() for p in at), tangents)
        except (torch.OutOfMemoryError, ChaosExtError):
            raise
        except Exception as e:  # torch and compilers raise many kinds where a transformation is not implemented
            log.warning("forward-over-reverse failed (%s: %s); using double backward", type(e).__name__, _first_line(e))
            self.path = DOUBLE_BACKWARD
            return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _detach(output: object) -> object:
    return output.detach() if isinstance(output, Tensor) else output


def _asymmetry_limit(dtype: torch.dtype) -> float:
    return 1e-3 if dtype == torch.float32 else 1e-8

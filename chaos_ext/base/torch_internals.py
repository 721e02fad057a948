"""What the package takes from torch beyond its documented interface: for a new torch, this is the file to review.

Every entry was read in torch 2.14.1; the tests also pass with 2.13.0. Nobody else in the package but ``torch_groups``
touches an attribute of torch's that starts with an underscore (a test holds that). Beside it, ``graph.tracing``
overrides torch.fx's Tracer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn, overrides
from torch.autograd import forward_ad
from torch.autograd.function import BackwardCFunction
from torch.nn import attention
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .restoring import Restoring

# torch/utils/_pytree.py: nested tuples, lists and dicts of tensors. The public torch.utils.pytree is not in 2.10.
tree_leaves = _pytree.tree_leaves
tree_map = _pytree.tree_map

# Keys of an optimizer's state of a parameter: torch/optim/sgd.py, torch/optim/adam.py.
MOMENTUM_BUFFER, EXP_AVG, EXP_AVG_SQ, STEP = "momentum_buffer", "exp_avg", "exp_avg_sq", "step"
MAX_EXP_AVG_SQ = "max_exp_avg_sq"


def version(t: Tensor) -> int:
    """How often a tensor was written in place (``Tensor._version``); 0 of one made in inference mode, which has none.

    Edits through ``.data`` or numpy do not count.
    """
    return 0 if t.is_inference() else t._version


def address(t: Tensor) -> int:
    """Where a tensor's values lie; of a sparse one, which has several memories, the object's own identity."""
    return t.data_ptr() if t.layout == torch.strided else id(t)


def stored_values(t: Tensor) -> Tensor:
    """The values that a tensor of any layout holds."""
    return t if t.layout == torch.strided else stored_parts(t)[-1]


def stored_parts(t: Tensor) -> tuple[Tensor, ...]:
    """Where the entries of a sparse tensor are, and their values (``Tensor._values`` of an uncoalesced one)."""
    if t.layout == torch.sparse_coo:
        return t._indices(), t._values()
    by_row = t.layout in (torch.sparse_csr, torch.sparse_bsr)
    places = (t.crow_indices(), t.col_indices()) if by_row else (t.ccol_indices(), t.row_indices())
    return *places, t.values()


def detached(t: Tensor) -> Tensor:
    """``t.detach()`` as a plain tensor, unseen by any TorchFunctionMode: to keep it is none of forward's doing."""
    if type(t) is Tensor and not t.requires_grad:
        return t
    with torch._C.DisableTorchFunction():
        return t.detach()


def own_parameters(m: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's parameters by name, without those of its children: the dict that ``nn.Module`` itself reads."""
    return m._parameters


def own_buffers(m: nn.Module) -> dict[str, Tensor | None]:
    """A module's buffers by name, without those of its children; writing to the dict skips ``register_buffer``."""
    return m._buffers


def own_children(m: nn.Module) -> dict[str, nn.Module | None]:
    """A module's children by name; one that is used twice is listed twice."""
    return m._modules


def own_parts(m: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Children, parameters and buffers, as above, in one call."""
    return m._modules, m._parameters, m._buffers


# The native functions behind ``F.hardsigmoid`` (torch/nn/functional.py).
HARDSIGMOID, HARDSIGMOID_ = torch._C._nn.hardsigmoid, torch._C._nn.hardsigmoid_
WEIGHT_NORM = torch._weight_norm  # what both weight_norms call (torch/nn/utils/weight_norm.py, parametrizations.py)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def without_grad(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``torch.no_grad()`` as a decorator that Ctrl-C cannot cut, at a third of the price.

    Those of torch are Python (torch/autograd/grad_mode.py): what a signal handler raises in ``__exit__`` leaves the
    whole process without gradients. Between a ``finally`` and a native function no handler runs.
    """
    return _in_grad_mode(function, enabled=False)


def with_grad(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``torch.enable_grad()`` likewise."""
    return _in_grad_mode(function, enabled=True)


def _in_grad_mode(function: Callable[_P, _R], enabled: bool) -> Callable[_P, _R]:
    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        before = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(enabled)
            return function(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(before)

    return wrapper


def has_own_functions(t: Tensor) -> bool:
    """Whether torch's functions ask the tensor's class what they should do, as ``torch.overrides.has_torch_function``
    says; that one is true of any tensor but a plain one while a mode is active, a default device for instance."""
    return type(t) is not Tensor and type(t).__torch_function__ is not torch._C._disabled_torch_function_impl


def has_hooks(m: nn.Module) -> bool:
    """Whether calling the module does more than its forward (``nn.Module.__call__``)."""
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def has_gradient_hooks(p: Tensor) -> bool:
    """Whether something may change or consume the gradient that arrives at a leaf (torch/_tensor.py)."""
    return bool(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))


def has_global_hooks() -> bool:
    """Whether every module's call does more (torch/nn/modules/module.py, ``register_module_forward_hook``)."""
    module = nn.modules.module
    forward = module._global_forward_hooks or module._global_forward_pre_hooks
    return bool(forward or module._global_backward_hooks or module._global_backward_pre_hooks)


_CALL = nn.Module.__call__


def is_intercepted() -> bool:
    """Whether calling any module or function may do more than usual here: global hooks, modes, another ``__call__``."""
    modes = torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()
    return bool(modes) or has_global_hooks() or nn.Module.__call__ is not _CALL


def has_step_hooks(opt: torch.optim.Optimizer) -> bool:
    """Whether a step of this optimizer does more (torch/optim/optimizer.py, ``register_step_pre_hook``)."""
    own = opt._optimizer_step_pre_hooks or opt._optimizer_step_post_hooks
    every = sys.modules["torch.optim.optimizer"]  # whose name torch.optim takes back
    return bool(own or every._global_optimizer_pre_hooks or every._global_optimizer_post_hooks)


def fused_adam_(
    t: Tensor, gradient: Tensor, moments: Sequence[Tensor], step: int, decoupled: bool, **options: Any
) -> None:
    """One pass of what ``torch.optim.Adam(fused=True)`` runs on the CPU, for dense tensors (torch/optim/adam.py).

    Args:
        t: updated in place, as are the moments.
        gradient: left as it is.
        moments: exp_avg, exp_avg_sq, and under amsgrad max_exp_avg_sq.
        step: this one's number, from 1.
        decoupled: AdamW's weight decay.
        options: lr, beta1, beta2, weight_decay, eps, amsgrad, maximize.
    """
    m, v, *most = moments
    steps = [torch.tensor(float(step), dtype=torch.float32, device="cpu")]
    run = torch._fused_adamw_ if decoupled else torch._fused_adam_
    run([t], [gradient], [m], [v], most, steps, **options)


def keeps_running_stats(m: nn.Module) -> bool:
    """Whether m is a BatchNorm or InstanceNorm with running statistics: they share the base ``_NormBase``."""
    return (
        isinstance(m, nn.modules.batchnorm._NormBase)
        and bool(m.track_running_stats)
        and m._buffers.get("running_mean") is not None
    )


def may_nest(m: nn.Module) -> bool:
    """Whether an encoder, in which nothing is trained, leaves out padded places (nn/modules/transformer.py)."""
    if not isinstance(m, nn.TransformerEncoder) or m.training or any(p.requires_grad for p in m.parameters()):
        return False
    return torch.backends.mha.get_fastpath_enabled() and bool(getattr(m, "use_nested_tensor", False))


def padding_of(m: Any) -> list[int]:
    """Zeros, or what ``padding_mode`` puts in, around each axis of a convolution's input, as ``F.pad`` wants them.

    ``_ConvNd`` computes it of an int, a tuple or "same".
    """
    return list(m._reversed_padding_repeated_twice)


def plain_kernels() -> Restoring[None]:
    """The mathematical form of attention, and no kernel of oneDNN or cuDNN: settings of the process.

    They are put back also where Ctrl-C comes in between, which ``sdpa_kernel`` (torch/nn/attention) does not do; the
    ``flags`` of torch.backends write to their other switches (precision, benchmark), too.
    """
    before = _kernels()
    return Restoring(lambda: _set_kernels([attention.SDPBackend.MATH], False, False), lambda: _set_kernels(*before))


def _kernels() -> tuple[Any, bool, bool]:
    backends = attention._cur_sdpa_kernel_backends()
    return backends, torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()


def _set_kernels(backends: Any, onednn: bool, cudnn: bool) -> None:
    attention._sdpa_kernel(backends)
    torch._C._set_mkldnn_enabled(onednn)
    torch._C._set_cudnn_enabled(cudnn)


def grad_mode(enabled: bool) -> Restoring[None]:
    """``torch.set_grad_enabled``, but Ctrl-C at its end does not keep it (torch/autograd/grad_mode.py)."""
    before = torch.is_grad_enabled()
    return Restoring(lambda: torch._C._set_grad_enabled(enabled), lambda: torch._C._set_grad_enabled(before))


class Mode(TorchFunctionMode):
    """A TorchFunctionMode of this package: it sees the calls of torch's functions while it is ``entered``."""

    is_on = False

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {}) if self.is_on else func(*args, **(kwargs or {}))


def entered(mode: Mode) -> Restoring[None]:
    """``with mode``; the stack of such modes is afterwards what it was, also after Ctrl-C.

    torch takes a mode off at every call and has a generator put it back (torch/overrides.py): one that is interrupted
    does so never, or much later, when the mode does nothing any more and is taken off by the next of ours.
    """
    stack = overrides._get_current_function_mode_stack()
    before = [m for m in stack if not isinstance(m, Mode) or m.is_on]

    def switch(to: bool) -> None:
        mode.is_on = to
        _set_modes([*before, mode] if to else before)

    return Restoring(lambda: switch(True), lambda: switch(False))


class Listening(Mode):
    """Does nothing; while a mode listens, torch's encoders do not nest tensors (nn/modules/transformer.py)."""

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)


def _set_modes(modes: list[Any]) -> None:
    now = overrides._get_current_function_mode_stack()
    same = 0
    while same < min(len(now), len(modes)) and now[same] is modes[same]:
        same += 1
    for _ in now[same:]:
        overrides._pop_mode()
    for m in modes[same:]:
        overrides._push_mode(m)


def function_class(node: Any) -> type | None:
    """The custom autograd Function that a node of a graph belongs to, or None (torch/autograd/function.py)."""
    return getattr(node, "_forward_cls", None) if isinstance(node, BackwardCFunction) else None


def forward_mode_is_active() -> bool:
    """Whether somebody, in any thread, is inside a ``torch.func.jvp`` (torch/autograd/forward_ad.py).

    When they leave it, the tangents of everybody are cleared.
    """
    return forward_ad._current_level >= 0


class Draws(TorchDispatchMode):
    """Notices operators of this thread that read a generator: they carry the tag ``nondeterministic_seeded``."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))

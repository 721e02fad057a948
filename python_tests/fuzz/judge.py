"""One call, and what is wrong with how it ended."""

from __future__ import annotations

import re
import resource
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_leaves, tree_map_only

from . import oracles
from .calls import Arguments
from .tensor_changes import is_readable

REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError)
# Torch's own, where it does not say which operator is called: None for a tensor, lazy zeros and negatives that an
# operator should write to, dtypes that it cannot hand over.
TORCHS = re.compile(r"Expected Tensor but got|ZeroTensors are immutable|cloned_mutable_input|Not yet supported Scal")
# What only memory or the numbers in a tensor tell, and the fake kernels cannot know.
OF_VALUES = re.compile(r"memory|aligned|order|sweeps \(l")
MOST_MEMORY = 256 << 20  # bytes that a call of such sizes may take


def operator(name: str) -> Any:
    return getattr(torch.ops.chaos_ext, name).default


def _written(name: str) -> list[bool]:
    return [a.alias_info is not None and a.alias_info.is_write for a in operator(name)._schema.arguments]


def _is_plain(t: Tensor) -> bool:
    """Whether a tensor has memory here that can be looked at."""
    if t.device.type != "cpu" or t.layout != torch.strided or torch._is_zerotensor(t):
        return False
    try:
        return t.untyped_storage().data_ptr() != 0
    except RuntimeError:  # a wrapper of other tensors
        return False


def _bytes(t: Tensor) -> Tensor:
    """The whole storage behind a tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())


class Memory:
    """All storages behind the operands of a call, as they were."""

    def __init__(self, arguments: Arguments) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        for t in tree_leaves(arguments):
            if isinstance(t, Tensor) and _is_plain(t):
                self._kept.setdefault(t.untyped_storage().data_ptr(), (_bytes(t), _bytes(t).clone()))

    def changed(self, written: list[Tensor]) -> bool:
        """Whether a byte that belongs to none of these tensors is not what it was."""
        own = {address: torch.zeros_like(now, dtype=torch.bool) for address, (now, _) in self._kept.items()}
        for t in written:
            if not _is_plain(t):
                continue
            item, mask = t.element_size(), own[t.untyped_storage().data_ptr()]
            strides = [*(s * item for s in t.stride()), 1]
            mask.as_strided((*t.shape, item), strides, t.storage_offset() * item).fill_(True)
        return any(not torch.equal(now[~own[a]], before[~own[a]]) for a, (now, before) in self._kept.items())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def judge(name: str, arguments: Arguments, must_accept: bool = False) -> tuple[bool, str | None]:
    """Carries out a call; whether the operator accepted it, and what is wrong, if anything."""
    memory, before, peak = Memory(arguments), _snapshot(name, arguments), _peak()
    try:
        results = operator(name)(*arguments)
    except BaseException as error:
        if must_accept:
            return False, f"a valid call is refused: {_first_line(error)}"
        return False, _wrong_refusal(name, error) or _after_refusal(name, arguments, memory, error)
    if _peak() - peak > MOST_MEMORY:
        return True, f"took {(_peak() - peak) >> 20} MB"
    writes = _written(name)
    if memory.changed([t for t, w in zip(arguments, writes) if w and isinstance(t, Tensor)]):
        return True, "changed memory that is not of an operand that it writes"
    made = [results] if isinstance(results, Tensor) else list(results or ())
    return True, _disagreement(name, arguments, made) or (before and _wrong_result(name, before, arguments, made))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _wrong_refusal(name: str, error: BaseException) -> str | None:
    """Of a class that a caller expects, and saying which operator it is, as ours and torch's own checks do."""
    text = str(error)
    if "can't allocate memory" in text:
        return f"tried to allocate too much: {_first_line(error)}"
    if not isinstance(error, REFUSALS):
        return f"raised {_first_line(error)}"
    named = f"{name}: expected " in text or f"chaos_ext::{name}" in text or TORCHS.search(text)
    return None if named else f"raised an error that does not name the operator: {_first_line(error)}"


def _after_refusal(name: str, arguments: Arguments, memory: Memory, error: BaseException) -> str | None:
    if TORCHS.search(str(error)):
        return None  # torch's fallback for lazy negatives writes before it fails
    if memory.changed([]):
        return f"changed memory and then raised {_first_line(error)}"
    text = str(error)
    if f"{name}: expected " not in text or OF_VALUES.search(text):
        return None
    fake = _faked(name, arguments)
    return f"the fake kernel accepts what raised {_first_line(error)}" if isinstance(fake, list) else None


def _disagreement(name: str, arguments: Arguments, results: list[Tensor]) -> str | None:
    """Between the metadata of the results and those that the fake kernel makes."""
    fake = _faked(name, arguments)
    if fake is None:
        return None
    if isinstance(fake, BaseException):
        return f"the fake kernel refuses: {_first_line(fake)}"
    own = [(t.dtype, [n if isinstance(n, int) else None for n in t.shape]) for t in fake]
    for (dtype, shape), t in zip(own, results, strict=True):
        if dtype != t.dtype or [n if m is None else m for m, n in zip(shape, t.shape)] != list(t.shape):
            return f"the fake kernel makes {dtype} {shape}, the real one {t.dtype} {list(t.shape)}"
    return None


def _faked(name: str, arguments: Arguments) -> list[Tensor] | BaseException | None:
    """What the fake kernel makes of a call, or raises; None where the call has no fake form."""
    tensors = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
    if not all(t.device.type == "cpu" and t.layout == torch.strided for t in tensors):
        return None
    if any(torch._is_zerotensor(t) or t.is_neg() for t in tensors):
        return None  # lazy, with other strides once they are resolved
    try:
        if name == "tridiagonal_ql":  # sizes that are not known need a mode
            mode = FakeTensorMode(shape_env=ShapeEnv())
            fakes = tree_map_only(Tensor, lambda t: mode.from_tensor(t.detach(), static_shapes=True), arguments)
            with mode:
                results = operator(name)(*fakes)
        else:
            results = operator(name)(*tree_map_only(Tensor, _meta, arguments))
    except Exception as error:
        return error
    return [t for t in tree_leaves(results) if isinstance(t, Tensor)]


def _meta(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def _snapshot(name: str, arguments: Arguments) -> Arguments | None:
    """The call as the twins take it, None where they cannot."""
    tensors = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
    if not all(t.device.type == "cpu" and t.layout == torch.strided for t in tensors):
        return None
    if not all(torch._is_zerotensor(t) or t.numel() == 0 or (_is_plain(t) and is_readable(t)) for t in tensors):
        return None
    given = [_floats(x) if "float" in str(a.type) else x for x, a in zip(arguments, operator(name)._schema.arguments)]
    return tree_map_only(Tensor, lambda t: t.detach().clone(), given) if oracles.comparable(given) else None


def _floats(x: Any) -> Any:
    """Numbers as the operator gets them."""
    if isinstance(x, (list, tuple)):
        return [_floats(item) for item in x]
    return float(x) if isinstance(x, int) else x


def _wrong_result(name: str, before: Arguments, arguments: Arguments, results: list[Tensor]) -> str | None:
    dtype = next((t.dtype for t in tree_leaves(arguments) if isinstance(t, Tensor)), torch.float64)
    if name == "tridiagonalise":
        return oracles.wrong_spectrum(before[0], *results[1:])
    try:
        known = oracles.expected(name, before)
    except Exception as error:
        return f"accepted what its twin cannot do: {_first_line(error)}"
    if known is None:
        return None
    wanted, after = known
    pairs = list(zip(results, wanted, strict=True))
    pairs += [(t, own) for t, own, w in zip(arguments, after, _written(name)) if w and isinstance(t, Tensor)]
    for n, (result, right) in enumerate(pairs):
        wrong = None if right is None else oracles.difference(result.resolve_neg(), right, dtype)
        if wrong is not None:
            return f"result {n}: {wrong}"
    return None

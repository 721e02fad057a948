"""Ctrl-C while a model is run: whatever was changed for the run is put back, in whatever line it comes."""

import contextlib
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import fingerprints
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chaos_ext as ce
from chaos_ext.base import guards, turns
from chaos_ext.base import torch_internals as internals
from chaos_ext.base.traces import untouched

GUARDS = (
    "base/guards.py",
    "base/restoring.py",
    "base/traces.py",
    "base/torch_internals.py",
    "curvature/substitution.py",
)
TORCHS = ("stateless.py", "_named_member_accessor.py", "attention/__init__.py", "contextlib.py")


@pytest.fixture(autouse=True)
def _ctrl_c_raises():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _AtLine:
    """Sends SIGINT before the nth line that is run of these files.

    Not before the first one of an ``__exit__``: there a context that is entered once can do nothing.
    """

    def __init__(self, n, files):
        self.left, self.files = n, files

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        if event == "call" and frame.f_code.co_name == "__exit__":
            return lambda *_: self
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self


def _interrupted(run, n, files):
    """Runs with a SIGINT before line n; whether it came."""
    lines = _AtLine(n, files)
    try:
        sys.settrace(lines)
        run()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return lines.left <= 0


def _has_given_its_turn():
    """Whether another thread gets the lock."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(lambda: turns._lock.acquire(blocking=False) and turns._lock.release() is None).result()


class Everything(nn.Module):
    """Something for each guard: running statistics, buffers, a sparse embedding, and attributes that forward writes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm, self.out = nn.Embedding(5, 4, sparse=True), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.calls, self.log, self.plain = 0, [], torch.zeros(2)
        self.generator = torch.Generator().manual_seed(1)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        self.log.append(self.calls)
        self.plain += 1
        h = torch.tanh(self.norm(self.words(x).mean(1)))
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return self.out(h + 0.0 * self.mean)


def _everything():
    torch.manual_seed(1)
    return Everything().double(), torch.randint(5, (6, 3)), torch.arange(6) % 3


CONTEXTS = {
    "statistics": lambda m: guards.without_running_stats(m),
    "buffers": lambda m: guards.borrowed_buffers(list(m.modules())),
    "tensors": lambda m: guards.own_tensors(m),
    "embeddings": lambda m: guards.dense_embeddings(m),
    "kernels": lambda m: internals.plain_kernels(),
    "differentiable": lambda m: guards.plain_kernels(),
    "attributes": lambda m: untouched(list(m.modules())),
    "edits": lambda m: guards.refuse_edits(list(m.named_parameters())),
}
BODIES = {
    "buffers": lambda m: (m.mean.add_(1.0), setattr(m, "mean", torch.ones(4)), m.norm.running_mean.add_(1.0)),
    "tensors": lambda m: m._parameters.update() or m.out._parameters.update(weight=nn.Parameter(torch.ones(3, 4))),
    "attributes": lambda m: (m.log.append(1), setattr(m, "calls", 7), setattr(m, "new", 1), m.plain.add_(1)),
    "edits": lambda m: m.out.weight.data.mul_(2.0),
}


@pytest.mark.parametrize("outer", [False, True])
def test_every_line_of_a_turn(outer):
    """The line of ``with`` comes once more when it is left: what is raised there skips the release."""
    came, done = 0, []

    def run():
        inner = lambda: turns.in_turn(lambda: done.append(1))  # noqa: E731
        return turns.in_turn(inner) if outer else inner()

    while _interrupted(run, came + 1, ("turns.py",)):
        came += 1
        assert _has_given_its_turn(), came
    assert came >= (10 if outer else 5)
    assert done


@pytest.mark.parametrize("name", CONTEXTS)
def test_every_line_of_a_guard(name):
    model, _, _ = _everything()
    before, n = (fingerprints.of_model(model), fingerprints.of_process()), 0
    rng = torch.get_rng_state()

    def run():
        with contextlib.suppress(ce.UnsupportedError), CONTEXTS[name](model):
            BODIES.get(name, lambda m: None)(model)

    came = True
    while came:
        n += 1
        came = _interrupted(run, n, (*GUARDS, "contextlib.py"))
        torch.set_rng_state(rng)
        assert not fingerprints.changes(before[0], fingerprints.of_model(model)), n
        assert not fingerprints.changes(before[1], fingerprints.of_process()), n
        assert _has_given_its_turn(), n
    assert n > 8


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.a(x).unsqueeze(0)
        return self.b(F.scaled_dot_product_attention(h, h, h).squeeze(0))


def _attention():
    torch.manual_seed(1)
    return Attention().double(), torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3


def _cnn():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double(), torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.arange(6) % 3


MODELS = {"everything": _everything, "attention": _attention, "convolutions": _cnn}
LOSSES = {"rules": nn.CrossEntropyLoss(), "torch": lambda o, t: F.cross_entropy(o, t) + 0.0}


class _Seen(internals.Mode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def call(self, func, args, kwargs):
        self.calls += 1
        return func(*args, **kwargs)


def test_a_mode_that_torch_puts_back_too_late_does_nothing():
    stale, fresh, before = _Seen(), _Seen(), torch.overrides._get_current_function_mode_stack()
    with internals.entered(stale):
        torch.ones(2)
    stale.__enter__()  # as torch's generator does
    try:
        torch.ones(2)
        with internals.entered(fresh):
            torch.ones(2)
        assert (stale.calls, fresh.calls) == (1, 1)
        assert torch.overrides._get_current_function_mode_stack() == before
    except BaseException:
        stale.__exit__(None, None, None)
        raise


def _count(run, files):
    lines = _AtLine(0, files)
    sys.settrace(lines)
    try:
        run()
    finally:
        sys.settrace(None)
    return -lines.left


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_random_lines_of_an_operator_and_its_product(name, loss):
    rng = random.Random(f"{name} {loss}")
    model, x, y = MODELS[name]()

    def run():
        op = ce.HessianOperator(model, LOSSES[loss], x, y)
        op @ torch.ones(op.shape[0], dtype=op.dtype)

    run()  # the program is known from here on
    expected = ce.hessian(model, LOSSES[loss], x, y)
    before, files = (fingerprints.of_model(model), fingerprints.of_process()), (*GUARDS, *TORCHS)
    lines = _count(run, files)
    for _ in range(40):
        assert _interrupted(run, rng.randint(1, lines), files)
        assert not fingerprints.changes(before[0], fingerprints.of_model(model))
        assert not fingerprints.changes(before[1], fingerprints.of_process())
        assert _has_given_its_turn()
    assert torch.equal(ce.hessian(model, LOSSES[loss], x, y), expected)


@pytest.mark.parametrize("name", MODELS)
def test_random_moments(name):
    rng, came = random.Random(name), 0
    model, x, y = MODELS[name]()
    before = fingerprints.of_model(model), fingerprints.of_process()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(120):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 1e-2))
                end = time.monotonic() + 1.0  # where it comes in a finalizer, Python drops it
                while time.monotonic() < end:
                    ce.hessian(model, LOSSES["torch"], x, y)
            except KeyboardInterrupt:
                came += 1
            assert not fingerprints.changes(before[0], fingerprints.of_model(model))
            assert not fingerprints.changes(before[1], fingerprints.of_process())
            assert _has_given_its_turn()
            torch.ones(1).requires_grad_()  # torch.func is left, too, where this is forbidden
            torch.func.jvp(torch.sin, (x.double(),), (x.double(),))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert came > 60


@pytest.mark.parametrize("precision", ["tf32", "bf16", "ieee"])
def test_settings_of_oneDNN_stay(precision):
    """Only its kernels are switched off and on again."""
    before = torch.backends.mkldnn.fp32_precision
    torch.backends.mkldnn.fp32_precision = precision
    try:
        model, x, y = _attention()
        ce.hessian(model, LOSSES["torch"], x, y)
        assert torch.backends.mkldnn.fp32_precision == precision
    finally:
        torch.backends.mkldnn.fp32_precision = before

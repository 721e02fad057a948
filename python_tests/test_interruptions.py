"""Ctrl-C at any moment: a state is what it was before or what it is after, and goes on to the bits of a whole run."""

import copy
import os
import random
import signal
import sys
import threading
import time

import pytest
import torch
from torch import nn

import chaos_ext as ce
from chaos_ext.base.signals import Deferred
from chaos_ext.base.torch_internals import without_grad

CE = nn.CrossEntropyLoss()


pytestmark = pytest.mark.usefixtures("ctrl_c_raises")


def _mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), torch.randn(6, 4, dtype=torch.float64)


def _cnn():
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double(), torch.randn(6, 1, 4, 4, dtype=torch.float64)


class Run:
    """A training run with an analyzer, all of whose state can be compared bit for bit."""

    def __init__(self, make, folder, order="top_abs"):
        torch.manual_seed(0)
        self.model, self.x = make()
        self.y = torch.arange(6) % 3
        generator = torch.Generator().manual_seed(1)
        options = {"momentum": 0.9, "prune": "negative", "k": 2, "order": order, "generator": generator}
        self.opt = ce.CGD(self.model.parameters(), lr=0.05, **options)
        self.an = ce.LyapunovAnalyzer(self.model, self.opt, k=3, qr_every=2, gali=True)
        self.tangent = ce.TangentMap(self.opt)
        self.Y = torch.randn(self.tangent.size, 3, dtype=torch.float64)
        self.file = folder / "analyzer"

    def operator(self):
        return ce.HessianOperator(self.model, CE, self.x, self.y)

    def state(self):
        return copy.deepcopy([self.model.state_dict(), self.opt.state_dict(), self.an.state_dict(), self.Y])

    def saved(self):
        other = ce.LyapunovAnalyzer(self.model, self.opt, k=3, qr_every=2, gali=True)
        other.load(self.file)
        return other.state_dict()


def _same(a, b):
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _interrupted(call, delay, how):
    """Runs call() with a KeyboardInterrupt after so many seconds; whether it came through."""

    def interrupt(*_):
        raise KeyboardInterrupt

    number = signal.SIGALRM if how == "timer" else signal.SIGINT
    old = signal.signal(number, interrupt)
    try:
        try:
            if how == "timer":
                signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-6))
            else:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
            call()
            time.sleep(0.05 if how == "kill" else 0.0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            return True
        return False
    finally:
        signal.signal(number, old)


def _duration(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _step(run, op):
    return lambda: run.opt.step(op)


def _update(run, op):
    return lambda: run.an.update(op)


def _apply(run, op):
    return lambda: run.tangent.apply_(op, run.Y)


def _load(run, op):
    return lambda: run.an.load(run.file)


CALLS = {"step": _step, "update": _update, "apply_": _apply, "load": _load}
POINTS = {"timer": 36, "kill": 4}  # of each call and model: 320 in all


@pytest.mark.parametrize("how", POINTS)
@pytest.mark.parametrize("make", [_mlp, _cnn])
@pytest.mark.parametrize("name", CALLS)
def test_before_or_after_never_between(name, make, how, tmp_path):
    rng, came, sides = random.Random(f"{name} {make.__name__} {how}"), 0, set()
    order = "random" if name == "step" else "top_abs"
    run, whole = Run(make, tmp_path, order), Run(make, tmp_path, order)
    for r in (run, whole):
        r.an.update(r.operator())
    run.an.save(run.file)
    ops = [r.operator() for r in (run, whole)]
    for _ in range(POINTS[how]):
        before = run.state()
        length = _duration(CALLS[name](whole, ops[1]))
        after = whole.state()
        interrupted = _interrupted(CALLS[name](run, ops[0]), rng.uniform(0, 1.1 * length), how)
        came += interrupted
        now = run.state()
        is_before, is_after = _same(now, before), _same(now, after)
        assert is_before or is_after
        assert interrupted or is_after
        sides.add(is_after)
        if not is_after:
            CALLS[name](run, run.operator())()  # a new one: torn parameters would show in it
            assert _same(run.state(), after)
        if name == "step":
            ops = [r.operator() for r in (run, whole)]
    assert came > POINTS[how] // 4


WRITERS = ("analyzer.py", "benettin.py", "tangent_map.py", "checkpoint.py", "cgd.py", "sgd.py", "transaction.py")


class _AtLine:
    """Sends SIGINT before the nth line that is run of the files that write to a state."""

    def __init__(self, n):
        self.left = n

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.endswith(WRITERS):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self


@pytest.mark.parametrize("name", CALLS)
def test_before_or_after_at_every_other_line(name, tmp_path):
    n, counts, lines = 1, {"before": 0, "after": 0}, _AtLine(0)
    while lines.left <= 0:
        run = _prepared(name, tmp_path)
        op, before = run.operator(), run.state()
        lines = _AtLine(n)
        try:
            sys.settrace(lines)
            CALLS[name](run, op)()
        except KeyboardInterrupt:
            sys.settrace(None)
            now = run.state()
            if _same(now, before):
                counts["before"] += 1
                CALLS[name](run, run.operator())()
            else:
                counts["after"] += 1
            assert _same(run.state(), _after(name, tmp_path)), n
        finally:
            sys.settrace(None)
        n += 2
    assert counts["before"] > 10
    assert counts["after"] > 0


def _prepared(name, tmp_path):
    run = Run(_mlp, tmp_path, "random" if name == "step" else "top_abs")
    run.an.update(run.operator())
    run.an.save(run.file)
    if name == "load":
        run.an.update(run.operator())
    return run


_whole = {}


def _after(name, tmp_path):
    """The state after the call that nothing interrupts."""
    if name not in _whole:
        run = _prepared(name, tmp_path)
        CALLS[name](run, run.operator())()
        _whole[name] = run.state()
    return _whole[name]


@pytest.mark.parametrize("make", [_mlp, _cnn])
def test_save_leaves_a_whole_file(make, tmp_path):
    rng, run = random.Random(0), Run(make, tmp_path)
    run.an.save(run.file)
    for _ in range(12):
        before = run.saved()
        run.an.update(run.operator())
        after = run.an.state_dict()
        length = _duration(lambda: run.an.save(tmp_path / "other"))
        _interrupted(lambda: run.an.save(run.file), rng.uniform(0, length), "timer")
        assert _same(run.an.state_dict(), after)
        assert _same(run.saved(), before) or _same(run.saved(), after)


def _handler(log, name):
    return lambda *_: log.append(name)


@pytest.fixture
def handlers():
    numbers = signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT
    old = [signal.getsignal(n) for n in numbers]
    yield
    for n, h in zip(numbers, old):
        signal.signal(n, h)


def test_deferred_handlers_run_afterwards_in_order(handlers):
    log = []
    first, second = _handler(log, "usr1"), _handler(log, "usr2")
    signal.signal(signal.SIGUSR1, first)
    signal.signal(signal.SIGUSR2, second)
    with Deferred(), Deferred():
        for n in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR2):
            signal.raise_signal(n)
        assert log == []
    assert log == ["usr2", "usr1"]
    assert signal.getsignal(signal.SIGUSR1) is first
    assert signal.getsignal(signal.SIGUSR2) is second


def test_a_handler_that_raises_keeps_no_other_from_running(handlers):
    log = []
    signal.signal(signal.SIGUSR1, _handler(log, "usr1"))

    def work():
        with Deferred():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGUSR1)
            log.append("inside")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert log == ["inside", "usr1"]


def test_a_handler_set_meanwhile_stays_and_is_called(handlers):
    log = []
    signal.signal(signal.SIGUSR1, _handler(log, "old"))
    mine = _handler(log, "new")

    def work():
        with Deferred():
            signal.raise_signal(signal.SIGUSR1)
            signal.signal(signal.SIGUSR1, mine)
            raise ValueError("from inside")

    with pytest.raises(ValueError, match="from inside"):
        work()
    assert log == ["new"]
    assert signal.getsignal(signal.SIGUSR1) is mine


def test_who_insists_gets_through(handlers):
    reached = []

    def work():
        with Deferred(insist=True):
            for i in range(3):
                signal.raise_signal(signal.SIGINT)
                reached.append(i)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_left_alone(handlers):
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with Deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_no_interruption_leaves_the_process_without_gradients():
    """What torch.no_grad() of Python would, if the handler ran at the start of its __exit__."""

    def interrupted(*_):
        raise KeyboardInterrupt

    @without_grad
    def step():
        assert not torch.is_grad_enabled()
        interrupted()

    with pytest.raises(KeyboardInterrupt):
        step()
    assert torch.is_grad_enabled()

"""``ce.Recorder``: what it logs is what the functions say that it names, and it changes nothing."""

import math

import pytest
import torch
from torch.optim import SGD, Adam
from training import CE, batches, small_model, take_step

import chaos_ext as ce


def _run(make, steps, looked=True, **options):
    """Records, the recorder, and the parameters at the end."""
    model, seen = small_model(), []
    opt = make(model.parameters())
    rec = ce.Recorder(model, opt, seen.append, **options) if looked else None
    for i in range(steps):
        x, y = batches(4)[i % 4]
        op = ce.HessianOperator(model, CE, x, y)
        if rec is not None:
            rec.update(op)
        take_step(model, opt, x, y, op)
    return seen, rec, torch.nn.utils.parameters_to_vector(model.parameters()).detach()


MAKE = {
    "sgd": lambda p: SGD(p, lr=0.3),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.01),
    "cgd": lambda p: ce.CGD(p, lr=0.1, prune="negative"),
}


@pytest.mark.parametrize("name", MAKE)
def test_records_hold_what_the_functions_say_and_training_is_the_same(name):
    seen, rec, theta = _run(MAKE[name], 8, k=2)
    _, _, alone = _run(MAKE[name], 8, looked=False)
    assert torch.equal(theta, alone)
    assert [r["step"] for r in seen] == list(range(8))
    assert rec.steps == 8

    model = small_model()
    opt = MAKE[name](model.parameters())
    an = ce.LyapunovAnalyzer(model, opt, 2)
    for i, record in enumerate(seen):
        x, y = batches(4)[i % 4]
        op = ce.HessianOperator(model, CE, x, y)
        spec, lr = ce.spectrum(op), opt.param_groups[0]["lr"]
        local, summary = ce.lle_spectrum(spec, lr), ce.spectral_summary(spec, lr)
        margin = ce.distance_to_threshold(op, opt)
        an.update(op)
        expected = {
            "loss": op.loss.item(),
            "lle/largest": float(local[0]),
            "lle/smallest": float(local[-1]),
            "lle/chaotic": summary.n_chaotic,
            "spectrum/largest": summary.lambda_max,
            "spectrum/smallest": summary.lambda_min,
            "spectrum/negative": summary.n_negative,
            "spectrum/zero": summary.n_zero,
            "spectrum/positive": summary.n_positive,
            "spectrum/negative_share": summary.share_negative,
            "spectrum/positive_share": summary.share_positive,
            "stability/sharpness": margin.sharpness,
            "stability/threshold": margin.threshold,
            "stability/ratio": margin.ratio,
            "stability/batch_sharpness": ce.batch_sharpness(op),
            "exponents/1": float(an.exponents()[0]),
            "exponents/2": float(an.exponents()[1]),
        }
        assert {k: v for k, v in record.items() if k in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert set(record) == {*expected, "step", "exponents/largest_error"}
        take_step(model, opt, x, y, op)


def test_every_so_many_steps_exponents_of_all():
    seen, rec, _ = _run(MAKE["sgd"], 9, every=4, what=("exponents",))
    assert [r["step"] for r in seen] == [0, 4, 8]
    assert rec.analyzer.steps == 9
    assert set(seen[-1]) == {"step", "loss", "exponents/1", "exponents/largest_error"}


def test_without_exponents_nothing_is_followed():
    seen, rec, _ = _run(MAKE["sgd"], 2, what=["spectrum"])
    assert rec.analyzer is None
    assert not any(k.startswith(("lle", "exponents", "stability")) for k in seen[0])


def test_an_analyzer_of_ones_own():
    model = small_model()
    opt = SGD(model.parameters(), lr=0.1)
    an = ce.LyapunovAnalyzer(model, opt, method="svd")
    seen = []
    rec = ce.Recorder(model, opt, seen.append, what=("exponents",), analyzer=an)
    for x, y in batches(3):
        op = ce.HessianOperator(model, CE, x, y)
        rec.update(op)
        take_step(model, opt, x, y, op)
    assert seen[-1]["exponents/1"] == pytest.approx(float(an.exponents()[0]))
    assert len(seen[-1]) == 2 + an.tangent.size + 1


def test_what_is_refused():
    model = small_model()
    opt = SGD(model.parameters(), lr=0.1)
    for error, match, arguments in (
        (TypeError, "log: expected a callable", {"log": []}),
        (ValueError, "every: expected an int >= 1", {"every": 0}),
        (ValueError, "what: expected some of", {"what": "spectrum"}),
        (ValueError, "what: expected some of", {"what": ("hessian",)}),
        (ValueError, "what: expected some of", {"what": ()}),
        (ValueError, "k: expected an int", {"k": 0}),
    ):
        with pytest.raises(error, match=match):
            ce.Recorder(model, opt, **{"log": print, **arguments})
    other = small_model()
    with pytest.raises(ValueError, match="analyzer: it follows another model or optimizer"):
        ce.Recorder(model, opt, print, analyzer=ce.LyapunovAnalyzer(other, SGD(other.parameters(), lr=0.1), 1))
    with pytest.raises(ce.UnsupportedError, match="RMSprop"):
        ce.Recorder(model, torch.optim.RMSprop(model.parameters()), print, what=("stability",))
    rec = ce.Recorder(model, opt, print)
    x, y = batches(1)[0]
    with pytest.raises(ValueError, match="op: its model is not this recorder's"):
        rec.update(ce.HessianOperator(other, CE, x, y))
    with pytest.raises(TypeError, match="op: expected a HessianOperator"):
        rec.update(model)
    assert rec.steps == 0


def test_a_log_that_fails_has_the_step_counted_once():
    model = small_model()
    opt = SGD(model.parameters(), lr=0.1)

    def fail(record):
        raise OSError("disk full")

    rec = ce.Recorder(model, opt, fail)
    x, y = batches(1)[0]
    with pytest.raises(OSError, match="disk full"):
        rec.update(ce.HessianOperator(model, CE, x, y))
    assert (rec.steps, rec.analyzer.steps) == (1, 1)


def test_a_step_that_cannot_be_looked_at_counts_nothing():
    model = small_model()
    opt = SGD(model.parameters(), lr=0.1)
    seen = []
    rec = ce.Recorder(model, opt, seen.append)
    x, y = batches(1)[0]
    op = ce.HessianOperator(model, CE, x, y)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(ce.StaleOperatorError):
        rec.update(op)
    assert (rec.steps, rec.analyzer.steps, seen) == (0, 0, [])
    assert math.isfinite(rec.update(ce.HessianOperator(model, CE, x, y))["loss"])

"""GPTQ against the textbook, against exhaustive scale search, and its invariants."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from gptq_data import Expert
from mtp_retrofit import gptq, native
from mtp_retrofit.gptq import GROUP, Options, quantise
from mtp_retrofit.hessian import Moments, blocked_cholesky, factor, shrink

D, ROWS = 384, 64


@pytest.fixture
def strict(monkeypatch):
    """Products in FP32, also where the processor would take BF16 for those that may be loose."""
    monkeypatch.setattr(gptq, "loose_products", lambda device: nullcontext())


@pytest.fixture(params=["native", "torch"])
def form(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(native, "usable", lambda tensor: False)
    elif native.library() is None:
        pytest.skip("no compiler")
    return request.param


def problem(seed: int = 0, tokens: int = 1500, batch: int = 2):
    torch.manual_seed(seed)
    mix = torch.randn(batch, D, D) / D**0.5
    x = (torch.randn(batch, tokens, D) @ mix) * torch.exp(0.5 * torch.randn(batch, 1, D))
    h = x.transpose(1, 2) @ x / tokens
    return torch.randn(batch, ROWS, D) * 0.02, h, x


def textbook(w: torch.Tensor, h: torch.Tensor, options: Options) -> torch.Tensor:
    """Frantar et al., algorithm 1, in float64: the inverse's Cholesky factor, one column at a
    time, each error subtracted at once from all later columns."""
    scales = gptq.choose_scales(
        w.float().T.contiguous()[None], h.diagonal()[None].float(), options
    )[0].T.double()
    w, h = w.double().clone(), h.double().clone()
    order = torch.arange(D)
    if options.order == "static":
        order = h.diagonal().argsort(stable=True).flip(0)
    h = h[order][:, order]
    h += options.damping * h.diagonal().mean() * torch.eye(D, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    w = w[:, order]
    codes = torch.empty_like(w)
    for k in range(D):
        s = scales[:, order[k] // GROUP]
        codes[:, k] = (w[:, k] / s).round().clamp(-8, 7)
        error = (w[:, k] - codes[:, k] * s) / upper[k, k]
        w[:, k:] -= error[:, None] * upper[k, k:][None]
    return codes[:, order.argsort()].to(torch.int8)


@pytest.mark.parametrize("order", ["static", "none"])
@pytest.mark.parametrize("scale", ["absmax", "mse", "weighted"])
@pytest.mark.parametrize("signed", [False, True])
def test_codes_are_those_of_the_textbook(order, scale, signed, form, strict):
    w, h, _ = problem()
    options = Options(order=order, scale=scale, signed=signed, damping=0.05)
    found = quantise(w, h, options)
    for b in range(len(w)):
        want = textbook(w[b], h[b], options)
        # float32 against float64: a value within rounding of a tie may go either way
        assert (found.codes[b] != want).float().mean() < 2e-3


def test_both_forms_give_the_same(monkeypatch, strict):
    if native.library() is None:
        pytest.skip("no compiler")
    w, h, _ = problem()
    fast = quantise(w, h, Options(signed=True))
    monkeypatch.setattr(native, "usable", lambda tensor: False)
    slow = quantise(w, h, Options(signed=True))
    assert (fast.scales != slow.scales).float().mean() < 1e-3
    assert (fast.codes != slow.codes).float().mean() < 2e-3
    assert torch.allclose(fast.loss, slow.loss, rtol=1e-3)


@pytest.mark.parametrize("signed", [False, True])
def test_loose_products_cost_no_accuracy(signed, form, monkeypatch):
    w, h, x = problem(tokens=4000)
    errors = []
    for _ in range(2):
        found = quantise(w, h, Options(signed=signed))
        errors.append(float(((w - found.weights()) @ x.transpose(1, 2)).norm()))
        monkeypatch.setattr(gptq, "loose_products", lambda device: nullcontext())
    assert errors[0] == pytest.approx(errors[1], rel=2e-3)


def test_loss_is_the_trace_it_claims(form):
    w, h, _ = problem(batch=1)
    found = quantise(w, h, Options(damping=1e-6, shrink=False))
    error = (w - found.weights())[0].double()
    assert float((error @ h[0].double() * error).sum()) == pytest.approx(float(found.loss), 2e-3)


def test_feedback_beats_rounding_and_searched_scales_beat_absmax(form):
    w, h, x = problem(tokens=4000)

    def error(result):
        return float(((w - result.weights()) @ x.transpose(1, 2)).norm())

    moments = h.diagonal(dim1=1, dim2=2)
    rounded = error(gptq.nearest(w, moments, Options(scale="absmax")))
    plain = error(quantise(w, h, Options(scale="absmax")))
    best = error(quantise(w, h, Options()))
    signed = error(quantise(w, h, Options(signed=True)))
    assert signed < best < plain < rounded


def test_scale_search_is_exhaustive(form):
    w, h, _ = problem(batch=1)
    moments = h.diagonal(dim1=1, dim2=2)
    options = Options(scale="weighted", signed=True)
    turned = w.transpose(1, 2).contiguous()
    found = gptq.choose_scales(turned, moments, options)[0]
    group, row = 1, 7
    values = w[0, row, GROUP : 2 * GROUP]
    base = values[values.abs().argmax()] / 7.5
    factors = [f * sign for f in gptq.SHRINKS for sign in (1, -7.5 / 8)]
    trials = {}
    for factor_ in factors:
        s = (base * factor_).bfloat16().float()
        q = (values / s).round().clamp(-8, 7)
        trials[float(s)] = float(((values - q * s) ** 2 * moments[0, GROUP : 2 * GROUP]).sum())
    assert trials[float(found[group, row])] == pytest.approx(min(trials.values()), rel=1e-5)


def test_scales_are_bf16_numbers_and_positive_unless_signed(form):
    w, h, _ = problem()
    for options in (Options(), Options(signed=True), Options(scale="absmax")):
        scales = quantise(w, h, options).scales
        assert torch.equal(scales, scales.bfloat16().float())
        assert bool((scales < 0).any()) is options.signed


def test_dead_columns_and_zero_rows(form):
    w, h, _ = problem()
    h[:, 5] = 0
    h[:, :, 5] = 0
    w[:, 3] = 0
    found = quantise(w, h, Options())
    assert not found.codes[:, :, 5].any()
    assert not found.codes[:, 3].any()
    assert torch.isfinite(found.scales).all() and (found.scales != 0).all()


def test_a_batch_is_its_members(form):
    w, h, _ = problem()
    both = quantise(w, h, Options())
    for b in range(2):
        one = quantise(w[b : b + 1], h[b : b + 1], Options())
        assert (both.codes[b] != one.codes[0]).float().mean() < 1e-3


@pytest.mark.parametrize("where", ["weights", "moments"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none(where, bad, form):
    w, h, _ = problem(batch=1)
    if where == "weights":
        w[0, 3, 200] = bad
    else:
        h[0, 7, 7] = bad
    with pytest.raises(ValueError, match="finite"):
        quantise(w, h, Options())


def test_shapes_that_do_not_fit():
    w, h, _ = problem(batch=1)
    with pytest.raises(ValueError, match="weights"):
        quantise(w, h[:, :256, :256], Options())
    with pytest.raises(ValueError, match="weights"):
        quantise(w[:, :, :100], h[:, :100, :100], Options())


def test_moments_add_up_and_are_symmetric():
    x = torch.randn(500, D).bfloat16()
    whole, parts = Moments.empty(D), Moments.empty(D)
    whole.add(x)
    for piece in x.split(77):
        parts.add(piece)
    want = x.double().T @ x.double() / 500
    for found in (whole, parts):
        h = found.hessian()
        assert torch.equal(h, h.T)
        assert float((h - want).norm() / want.norm()) < 1e-6
        assert found.count == 500
        fourth = float(x.double().square().sum(1).square().sum())
        assert float(found.fourth) == pytest.approx(fourth, rel=1e-5)


def test_moments_refuse_what_is_not_finite():
    x = torch.randn(10, D)
    x[3, 4] = float("nan")
    moments = Moments.empty(D)
    moments.add(x)
    with pytest.raises(ValueError, match="NaN"):
        moments.check()
    with pytest.raises(ValueError, match="shape"):
        Moments.empty(D).add(torch.randn(10, D + 1))


def test_factor_is_a_factor():
    _, h, _ = problem(batch=2)
    low, pivots = factor(h.clone(), 0.1)
    low = torch.tril(low, -1) + torch.eye(D)
    damped = h + 0.1 * h.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * torch.eye(D)
    assert torch.allclose(low @ torch.diag_embed(pivots) @ low.mT, damped, rtol=1e-3, atol=1e-4)


def test_the_blocked_factorisation_is_the_library_s():
    _, h, _ = problem(batch=3)
    h += 0.1 * torch.eye(D)
    lower, failed = blocked_cholesky(h, size=100)
    assert not failed.any()
    assert torch.allclose(lower, torch.linalg.cholesky(h), atol=1e-4)
    h[1] -= 100 * torch.eye(D)
    _, failed = blocked_cholesky(h, size=100)
    assert [bool(f) for f in failed] == [False, True, False]


def test_shrinking_is_strong_for_few_tokens_and_weak_for_many():
    intensities = []
    for tokens in (20, 400, 20000):
        _, _, x = problem(tokens=tokens, batch=1)
        moments = Moments.empty(D)
        moments.add(x[0])
        h = moments.hessian()
        before = h.clone()
        intensities.append(shrink(h, moments))
        assert torch.equal(h.diagonal(), before.diagonal())
        assert torch.allclose(h[0, 1:], before[0, 1:] * (1 - intensities[-1]))
    assert 1 > intensities[0] > 0.8 > intensities[1] > 0.2 > intensities[2] > 0


def test_no_tokens_shrink_to_the_diagonal():
    moments = Moments.empty(D)
    h = moments.hessian()
    assert shrink(h, moments) == 1.0
    found = quantise(torch.randn(1, ROWS, D), h[None] + torch.eye(D), Options())
    assert torch.isfinite(found.loss).all()


def test_a_deficient_hessian_is_factored():
    _, _, x = problem(tokens=10, batch=1)
    h = (x[0].T @ x[0] / 10)[None]
    feed, pivots = factor(h.clone(), 0.0)
    assert torch.isfinite(feed).all() and (pivots > 0).all()


@pytest.mark.parametrize("tokens", [40, 1000])
def test_whole_expert_on_held_out_tokens(tokens):
    """The order of quality that the options promise, on tokens that were not calibrated on."""
    data = Expert(tokens, d=512, f=256, held=512)

    def error(options: Options) -> float:
        weights = {}
        for names in (("w1", "w3"), ("w2",)):
            moments = Moments.empty(data.inputs(names[0]).shape[1])
            moments.add(data.inputs(names[0]))
            h = moments.hessian()
            if options.shrink:
                shrink(h, moments)
            w = torch.cat([data.w[n] for n in names])
            done = quantise(w[None], h[None], options).weights()[0]
            parts = done.split([data.w[n].shape[0] for n in names])
            weights.update(zip(names, parts, strict=True))
        return data.error(weights)

    peer = error(Options(shrink=False, damping=0.1, scale="weighted"))
    assert error(Options()) < peer
    assert error(Options(signed=True)) < 0.97 * error(Options())

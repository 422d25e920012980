"""Schedules against PyTorch's schedulers, against exact closed forms, and against each other."""

import copy
import hashlib
import inspect
import math
import pickle
import random
import warnings
from fractions import Fraction

import numpy as np
import pytest

from gradstep import schedules
from gradstep._engine.checks import MAX_INTEGER
from gradstep.schedules import (
    Schedule,
    constant,
    cosine,
    cosine_restarts,
    exponential,
    inverse_sqrt,
    inverse_time,
    join,
    one_cycle,
    piecewise,
    polynomial,
    step_decay,
    warmup,
    warmup_stable_decay,
)
from oracle import needs_glibc
from test_exact_math import digests_on_an_old_processor

EXAMPLES = [
    constant(0.1),
    step_decay(0.1, every=30, factor=0.3),
    exponential(0.1, rate=0.99),
    inverse_time(0.1, rate=0.03),
    inverse_sqrt(0.1, warmup_steps=7),
    inverse_sqrt(0.1, warmup_steps=1),
    polynomial(0.1, total_steps=100),
    polynomial(0.1, total_steps=1),
    polynomial(0.1, total_steps=97, power=2.0, min_lr=0.01),
    polynomial(0.1, total_steps=97, power=0.9, min_lr=0.001),
    cosine(0.1, total_steps=100),
    cosine(0.3, total_steps=97, min_lr=0.1),
    cosine_restarts(0.1, restart_steps=10),
    cosine_restarts(0.1, restart_steps=1, multiplier=2, min_lr=0.01),
    cosine_restarts(0.1, restart_steps=7, multiplier=3, min_lr=0.01),
    one_cycle(0.1, total_steps=100),
    one_cycle(0.1, total_steps=1),
    one_cycle(0.1, total_steps=2, three_phase=True),
    one_cycle(0.1, total_steps=97, warmup_fraction=0.25, three_phase=True),
    one_cycle(0.1, total_steps=97, warmup_fraction=0.0, annealing="linear"),
    warmup_stable_decay(0.1, warmup_steps=10, stable_steps=50, decay_steps=20, min_lr=0.01),
    warmup_stable_decay(0.1, warmup_steps=0, stable_steps=0, decay_steps=1),
    warmup(0.1, steps=10),
    warmup(cosine(0.1, total_steps=90), steps=10, start=0.1),
    warmup(cosine_restarts(0.1, restart_steps=3, multiplier=2), steps=0),
    piecewise([10, 20], [0.1, 0.01, 0.001]),
    piecewise([], [0.1]),
    join([warmup(0.1, 10), cosine(0.1, 90), 0.01], [10, 150]),
    join([join([0.2, exponential(0.1, 0.9)], [5]), inverse_sqrt(0.1, 4)], [20]),
]
FACTORIES = {name: getattr(schedules, name) for name in schedules.__all__ if name != "Schedule"}
STEPS = np.arange(400)


def name_of(schedule: Schedule) -> str:
    return repr(schedule).partition("(")[0]


@pytest.fixture(params=EXAMPLES, ids=repr)
def schedule(request) -> Schedule:
    return request.param


def test_every_factory_has_an_example_here():
    assert {name_of(schedule) for schedule in EXAMPLES} == set(FACTORIES)


# What every schedule does ------------------------------------------------------------------------


def test_an_array_has_the_bits_of_single_steps(schedule):
    steps = np.concatenate([STEPS, [10**4, 10**9, MAX_INTEGER - 1, MAX_INTEGER]])
    values = schedule(steps)
    assert values.dtype == np.float64
    assert [x.hex() for x in values.tolist()] == [schedule(step).hex() for step in steps.tolist()]


def test_a_step_gives_a_float_and_an_array_an_array_of_its_shape(schedule):
    assert type(schedule(3)) is float
    assert type(schedule(np.int32(3))) is float
    for shape in [(), (0,), (1,), (3, 0), (4, 25)]:
        steps = np.resize(STEPS, shape).astype(np.uint16)
        values = schedule(steps)
        assert type(values) is np.ndarray
        assert (values.shape, values.dtype) == (shape, np.float64)
        assert values.ravel().tolist() == [schedule(step) for step in steps.ravel().tolist()]


@pytest.mark.parametrize("dtype", ["int8", "uint8", ">i4", "int64", "uint64"])
def test_steps_may_be_of_any_whole_type(schedule, dtype):
    expected = schedule(STEPS[:120]).tobytes()
    assert schedule(STEPS[:120].astype(dtype)).tobytes() == expected
    assert schedule(STEPS[119::-1].astype(dtype))[::-1].tobytes() == expected


def test_values_depend_on_the_step_alone(schedule):
    in_order = [schedule(step) for step in range(200)]
    order = random.Random(0).sample(range(200), 200)
    assert [schedule(step) for step in order] == [in_order[step] for step in order]
    steps = STEPS.copy()
    schedule(steps)
    assert steps.tobytes() == STEPS.tobytes()


def test_values_are_rates(schedule):
    values = schedule(STEPS)
    assert np.isfinite(values).all()
    assert (values >= 0).all()


def test_repr_is_the_call_that_makes_it(schedule):
    assert eval(repr(schedule), dict(FACTORIES)) == schedule


def test_repr_reads_well():
    lr = warmup(cosine(0.1, 90), 10)
    assert (
        repr(lr)
        == "warmup(schedule=cosine(lr=0.1, total_steps=90, min_lr=0.0), steps=10, start=0.0)"
    )
    assert repr(join([0.1, constant(1)], [5])) == (
        "join(schedules=(constant(lr=0.1), constant(lr=1.0)), boundaries=(5,))"
    )


def test_equality_is_by_definition(schedule):
    twin = eval(repr(schedule), dict(FACTORIES))
    assert twin is not schedule
    assert hash(twin) == hash(schedule)
    assert [other == schedule for other in EXAMPLES] == [other is schedule for other in EXAMPLES]
    assert schedule != repr(schedule)


def test_equality_ignores_how_the_arguments_were_written():
    assert cosine(1, np.int64(100)) == cosine(lr=1.0, total_steps=100, min_lr=0)
    assert piecewise([5], (1, 2)) == piecewise((5,), [1.0, 2.0])
    assert exponential(0.1, 0.5) != inverse_time(0.1, 0.5)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(schedule, protocol):
    twin = pickle.loads(pickle.dumps(schedule, protocol))
    assert twin == schedule
    assert twin(STEPS).tobytes() == schedule(STEPS).tobytes()


def test_pickles_have_public_names_only():
    """So that those of 0.5.0, such as this one, load, and those of today later."""
    of_0_5_0 = (
        b"cfunctools\npartial\np0\n(cgradstep.schedules\nconstant\np1\ntp2\nRp3\n(g1\n(t(dp4\nVlr\n"
        b"p5\nF0.1\nsNtp6\nb(tRp7\n."
    )
    assert pickle.loads(of_0_5_0) == schedules.constant(0.1)
    for name in schedules.__all__:
        assert getattr(schedules, name).__module__ == "gradstep.schedules"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies(schedule, duplicate):
    assert duplicate(schedule) == schedule


def test_later_changes_of_the_arguments_do_not_reach_a_schedule():
    boundaries, values = [10], [0.1, 0.2]
    lr = piecewise(boundaries, values)
    boundaries[0], values[0] = 1, 9.0
    assert lr == piecewise([10], [0.1, 0.2])


# PyTorch -----------------------------------------------------------------------------------------


def torch_rates(make, lr: float, steps: int) -> list[float]:
    """The rates of a PyTorch scheduler, `make(optimizer, torch.optim.lr_scheduler)`."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    with warnings.catch_warnings():
        # SequentialLR itself calls step() in the way that it warns of.
        warnings.filterwarnings("ignore", "The epoch parameter in `scheduler.step", UserWarning)
        scheduler = make(optimizer, torch.optim.lr_scheduler)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


def torch_cycle(total_steps=300, **options):
    return lambda opt, s: s.OneCycleLR(opt, 0.1, total_steps, cycle_momentum=False, **options)


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (constant(0.1), lambda opt, s: s.ConstantLR(opt, factor=1)),
        (step_decay(0.1, 30, 0.3), lambda opt, s: s.StepLR(opt, 30, 0.3)),
        (exponential(0.1, 0.97), lambda opt, s: s.ExponentialLR(opt, 0.97)),
        (inverse_time(0.1, 0.03), lambda opt, s: s.LambdaLR(opt, lambda t: 1 / (1 + 0.03 * t))),
        (
            inverse_sqrt(0.1, 20),
            lambda opt, s: s.LambdaLR(opt, lambda t: min(t / 20, (20 / max(t, 1)) ** 0.5)),
        ),
        (polynomial(0.1, 100), lambda opt, s: s.PolynomialLR(opt, 100)),
        (polynomial(0.1, 100, 0.9), lambda opt, s: s.PolynomialLR(opt, 100, 0.9)),
        (polynomial(0.1, 100, 2), lambda opt, s: s.PolynomialLR(opt, 100, 2)),
        (
            polynomial(0.1, 100, min_lr=0.02),
            lambda opt, s: s.LinearLR(opt, start_factor=1, end_factor=0.2, total_iters=100),
        ),
        (
            cosine_restarts(0.1, 50, min_lr=0.01),
            lambda opt, s: s.CosineAnnealingWarmRestarts(opt, 50, 1, 0.01),
        ),
        (cosine_restarts(0.1, 10, 2), lambda opt, s: s.CosineAnnealingWarmRestarts(opt, 10, 2)),
        (cosine_restarts(0.1, 1, 3), lambda opt, s: s.CosineAnnealingWarmRestarts(opt, 1, 3)),
        (
            warmup(0.1, 10, start=0.25),
            lambda opt, s: s.LinearLR(opt, start_factor=0.25, total_iters=10),
        ),
        (
            warmup(exponential(0.1, 0.9), 10, start=0.25),
            lambda opt, s: s.SequentialLR(
                opt, [s.LinearLR(opt, 0.25, total_iters=10), s.ExponentialLR(opt, 0.9)], [10]
            ),
        ),
        (
            piecewise([30, 80], [0.1, 0.01, 0.001]),
            lambda opt, s: s.MultiStepLR(opt, [30, 80], 0.1),
        ),
        (
            join(
                [exponential(0.1, 0.9), cosine_restarts(0.1, 10), step_decay(0.1, 7, 0.5)], [9, 50]
            ),
            lambda opt, s: s.SequentialLR(
                opt,
                [
                    s.ExponentialLR(opt, 0.9),
                    s.CosineAnnealingWarmRestarts(opt, 10),
                    s.StepLR(opt, 7, 0.5),
                ],
                [9, 50],
            ),
        ),
    ],
    ids=lambda value: repr(value) if isinstance(value, Schedule) else "",
)
@pytest.mark.torch
def test_equals_pytorch(schedule, make):
    expected = torch_rates(make, lr=0.1, steps=300)
    np.testing.assert_allclose(schedule(np.arange(300)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (cosine(0.1, 300), lambda opt, s: s.CosineAnnealingLR(opt, 300)),
        (cosine(0.1, 300, 0.01), lambda opt, s: s.CosineAnnealingLR(opt, 300, 0.01)),
        *(
            (
                one_cycle(0.1, 300, fraction, annealing=annealing, three_phase=three_phase),
                torch_cycle(
                    pct_start=fraction,
                    anneal_strategy={"cosine": "cos", "linear": "linear"}[annealing],
                    three_phase=three_phase,
                ),
            )
            for fraction in (0.3, 0.25, 0.123)
            for annealing in ("cosine", "linear")
            for three_phase in (False, True)
        ),
        (
            one_cycle(0.1, 300, 0.4, 10, 100),
            torch_cycle(pct_start=0.4, div_factor=10, final_div_factor=100),
        ),
    ],
    ids=lambda value: repr(value) if isinstance(value, Schedule) else "",
)
@pytest.mark.torch
def test_equals_pytorch_until_its_end(schedule, make):
    # Near the end PyTorch's 1 + cos cancels, which costs it last bits of `lr`, not of the value.
    expected = torch_rates(make, lr=0.1, steps=300)
    np.testing.assert_allclose(schedule(np.arange(300)), expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("total_steps", [4, 5, 7, 97])
@pytest.mark.torch
def test_a_short_cycle_equals_pytorch(total_steps):
    expected = torch_rates(torch_cycle(total_steps), lr=0.1, steps=total_steps)
    rates = one_cycle(0.1, total_steps)(np.arange(total_steps))
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-16)


# Closed forms ------------------------------------------------------------------------------------


def assert_exact(schedule: Schedule, formula, steps=range(300), ulps: int = 4) -> None:
    """`formula` in fractions, from the same doubles; the schedule may round a few times."""
    for step in steps:
        exact = formula(Fraction(step))
        assert abs(Fraction(schedule(step)) - exact) <= ulps * Fraction(math.ulp(exact)), step


LR, MIN_LR = Fraction(0.1), Fraction(0.01)


def test_constant():
    assert set(constant(0.1)(STEPS).tolist()) == {0.1}


def test_step_decay():
    lr = step_decay(0.1, every=30, factor=0.5)
    assert lr(STEPS).tolist() == [0.1 * 0.5 ** (step // 30) for step in range(len(STEPS))]
    assert_exact(step_decay(0.1, 30, 0.3), lambda t: LR * Fraction(0.3) ** int(t // 30))


def test_exponential():
    # Half an ulp for each factor at most.
    assert_exact(exponential(0.1, 0.97), lambda t: LR * Fraction(0.97) ** int(t), ulps=300)
    assert exponential(0.1, 1)(MAX_INTEGER) == 0.1
    assert exponential(0.1, 0.5)(MAX_INTEGER) == 0.0


def test_inverse_time():
    assert_exact(inverse_time(0.1, 0.03), lambda t: LR / (1 + Fraction(0.03) * t))
    assert inverse_time(0.1, 0)(MAX_INTEGER) == 0.1
    steps = np.array([0, 1, MAX_INTEGER])
    assert inverse_time(0.1, 1.7e308)(steps).tolist() == [0.1, 0.1 / 1.7e308, 0.0]


def test_inverse_sqrt():
    lr = inverse_sqrt(0.1, warmup_steps=25)
    assert_exact(lr, lambda t: LR * t / 25, steps=range(26))
    assert [lr(25 * k * k) for k in (1, 2, 4, 8)] == [0.1, 0.05, 0.025, 0.0125]
    # Squared, the tail is a fraction too.
    for step in range(25, 300):
        assert abs(Fraction(lr(step)) ** 2 * step / (25 * LR**2) - 1) < Fraction(1, 2**50)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_polynomial(power):
    lr = polynomial(0.1, 100, power, 0.01)
    assert_exact(lr, lambda t: MIN_LR + (LR - MIN_LR) * (1 - min(t / 100, 1)) ** power)
    # The last bits are right up to the end, where the value is small.
    assert_exact(polynomial(0.1, 100, power), lambda t: LR * (1 - min(t / 100, 1)) ** power)


def test_cosine():
    lr = cosine(0.1, total_steps=96, min_lr=0.01)
    for step in range(97):
        expected = 0.01 + (0.1 - 0.01) * (1 + math.cos(math.pi * step / 96)) / 2
        assert lr(step) == pytest.approx(expected, rel=1e-14)
    assert cosine(0.5, 96)(np.array([0, 32, 48, 64, 96])).tolist() == pytest.approx(
        [0.5, 0.375, 0.25, 0.125, 0], rel=1e-15
    )


def test_cosine_restarts():
    descent = cosine(0.1, total_steps=10, min_lr=0.01)
    lr = cosine_restarts(0.1, restart_steps=10, min_lr=0.01)
    assert [lr(step) for step in range(300)] == [descent(step % 10) for step in range(300)]
    lr = cosine_restarts(0.1, restart_steps=10, multiplier=3, min_lr=0.01)
    for start, length in [(0, 10), (10, 30), (40, 90), (130, 270)]:
        descent = cosine(0.1, total_steps=length, min_lr=0.01)
        assert [lr(start + step) for step in range(length)] == [descent(s) for s in range(length)]


@pytest.mark.parametrize("multiplier", [1, 2, 3, 10, MAX_INTEGER])
@pytest.mark.parametrize("restart_steps", [1, 7, MAX_INTEGER // 2, MAX_INTEGER])
def test_cosine_restarts_at_extreme_lengths(restart_steps, multiplier):
    lr = cosine_restarts(0.1, restart_steps, multiplier)
    start, length = 0, restart_steps
    for _ in range(60):
        assert lr(start) == 0.1
        start, length = start + length, length * multiplier
        if start > MAX_INTEGER:
            break
    steps = np.array([0, 1, start % MAX_INTEGER, MAX_INTEGER])
    assert lr(steps).tolist() == [lr(step) for step in steps.tolist()]


@pytest.mark.parametrize("annealing", ["cosine", "linear"])
def test_one_cycle(annealing):
    lr = one_cycle(1.0, 101, 26 / 101, initial_divisor=8, final_divisor=64, annealing=annealing)
    assert [lr(step) for step in (0, 25, 100, 101, 10**6)] == [0.125, 1.0, 2**-9, 2**-9, 2**-9]
    rates = lr(np.arange(101))
    assert (np.diff(rates[:26]) > 0).all()
    assert (np.diff(rates[25:]) < 0).all()
    lr = one_cycle(1.0, 101, 26 / 101, 8, 64, annealing=annealing, three_phase=True)
    assert [lr(step) for step in (0, 25, 50, 100, 10**6)] == [0.125, 1.0, 0.125, 2**-9, 2**-9]
    rates = lr(np.arange(51))
    np.testing.assert_allclose(rates, rates[::-1], rtol=1e-15)


def test_linear_one_cycle():
    lr = one_cycle(1.0, 101, 26 / 101, 8, 64, annealing="linear")
    high, low, end = Fraction(1), Fraction(1, 8), Fraction(1, 512)
    assert_exact(lr, lambda t: low + (high - low) * t / 25, steps=range(26))
    assert_exact(lr, lambda t: high + (end - high) * (t - 25) / 75, steps=range(25, 101))


@pytest.mark.covering
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 4, 10, MAX_INTEGER])
@pytest.mark.parametrize("fraction", [0.0, 1e-300, 0.1, 0.3, 0.25, 0.5, math.nextafter(1, 0)])
def test_one_cycle_ends_where_it_should(fraction, total_steps, three_phase):
    """PyTorch divides by 0 where the climb has no steps, for instance 0.25 of 4."""
    fraction = min(fraction, math.nextafter(0.5, 0)) if three_phase else fraction
    lr = one_cycle(1.0, total_steps, fraction, 8, 64, three_phase=three_phase)
    assert lr(total_steps - 1) == lr(total_steps) == 2**-9
    if total_steps > 1:
        no_climb = fraction * total_steps <= 1
        assert lr(0) == (1.0 if no_climb and not three_phase else 0.125)


def test_warmup_stable_decay():
    def formula(t):
        if t < 10:
            return LR * t / 10
        return LR if t < 60 else MIN_LR + (LR - MIN_LR) * (1 - min((t - 60) / 20, 1))

    assert_exact(warmup_stable_decay(0.1, 10, 50, 20, 0.01), formula)
    lr = warmup_stable_decay(0.1, 10, 50, 20, 0.01)
    assert set(lr(np.arange(10, 61)).tolist()) == {0.1}
    assert [lr(0), lr(80), lr(10**6)] == [0.0, 0.01, 0.01]
    assert warmup_stable_decay(0.1, 0, 0, 20)(STEPS).tolist() == polynomial(0.1, 20)(STEPS).tolist()


def test_warmup_stable_decay_is_made_of_the_others():
    whole = warmup_stable_decay(0.1, 10, 50, 20, 0.01)
    parts = warmup(join([0.1, polynomial(0.1, 20, min_lr=0.01)], [50]), 10)
    assert whole(STEPS).tobytes() == parts(STEPS).tobytes()


def test_warmup():
    after = cosine(0.1, total_steps=90)
    lr = warmup(after, steps=10, start=0.25)
    assert_exact(lr, lambda t: LR * (1 + 3 * t / 10) / 4, steps=range(10))
    assert lr(np.arange(10, 300)).tobytes() == after(np.arange(290)).tobytes()
    assert warmup(after, steps=0)(STEPS).tobytes() == after(STEPS).tobytes()
    assert warmup(0.1, 10) == warmup(constant(0.1), 10)


@pytest.mark.parametrize("start", [0, 0.1, 0.3, 1 / 3, 0.7, 1e-17, 1])
def test_warmup_joins_the_schedule_exactly(start):
    lr = warmup(0.1, 7, start)
    assert lr(0) == start * 0.1
    assert {lr(step) for step in range(7, 20)} == {0.1}


def test_piecewise():
    lr = piecewise([3, 4, 10], [0.4, 0.3, 0.2, 0.1])
    assert lr(np.arange(12)).tolist() == [0.4] * 3 + [0.3] + [0.2] * 6 + [0.1] * 2
    assert lr(MAX_INTEGER) == 0.1
    assert piecewise(range(1, 200), [step / 10 for step in range(200)])(150) == 15.0


def test_join():
    first, second, third = cosine(0.1, 7), exponential(0.2, 0.9), warmup(0.3, 5)
    lr = join([first, second, third], [5, 12])
    expected = [first(step) for step in range(5)]
    expected += [second(step) for step in range(7)]
    expected += [third(step) for step in range(8)]
    assert lr(np.arange(20)).tolist() == [lr(step) for step in range(20)] == expected
    assert join([first], [])(STEPS).tobytes() == first(STEPS).tobytes()
    numbers = join([0.4, 0.3, 0.2], [3, 10])
    assert numbers(STEPS).tolist() == piecewise([3, 10], [0.4, 0.3, 0.2])(STEPS).tolist()


@pytest.mark.parametrize(
    ("schedule", "total_steps", "end"),
    [
        (polynomial(0.1, 100, min_lr=0.003), 100, 0.003),
        (polynomial(0.1, 100, 0.7, 0.003), 100, 0.003),
        (cosine(0.1, 100, 0.003), 100, 0.003),
        (one_cycle(0.1, 100), 99, 0.1 / 25 / 1e4),
        (warmup_stable_decay(0.1, 10, 70, 20, 0.003), 100, 0.003),
        (warmup(cosine(0.1, 90, 0.003), 10), 100, 0.003),
    ],
    ids=repr,
)
def test_a_decay_stays_at_its_end(schedule, total_steps, end):
    assert schedule(total_steps - 1) > end
    after = np.concatenate([np.arange(total_steps, total_steps + 100), [10**9, MAX_INTEGER]])
    assert set(schedule(after).tolist()) == {end}


@pytest.mark.parametrize("make", [polynomial, cosine, cosine_restarts])
def test_a_decay_has_exact_ends(make):
    """`min_lr + (lr - min_lr)` is not always `lr`."""
    # rng.random() has no last bits below 2^-53, so numbers that need them are made of it.
    for min_lr, lr in np.sort(np.random.default_rng(0).random((100, 2)) * 0.7).tolist():
        assert make(lr, 7, min_lr=min_lr)(0) == lr
        if make is not cosine_restarts:
            assert make(lr, 7, min_lr=min_lr)(7) == min_lr


# Bad steps and arguments -------------------------------------------------------------------------

TYPES = [True, "0.1", None, [0.1], 1j, np.array([0.1])]
BAD_RATES = [(x, TypeError) for x in TYPES] + [
    (x, ValueError) for x in (-0.1, math.nan, math.inf, -math.inf)
]
BAD_COUNTS = [(x, TypeError) for x in [*TYPES, 10.0, math.nan]] + [
    (x, ValueError) for x in (-1, MAX_INTEGER + 1, 10**400)
]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        *BAD_COUNTS,
        (np.bool_(True), TypeError),
        (np.float64(3), TypeError),
        (np.array([0.0, 1.0]), TypeError),
        (np.array([True]), TypeError),
        (np.array([1, 2], dtype=object), TypeError),
        (np.array([3, -7, 5]), ValueError),
        (np.array([5, 2**63, 3], dtype=np.uint64), ValueError),
    ],
)
@pytest.mark.parametrize("schedule", [constant(0.1), warmup(cosine(0.1, 90), 10)], ids=repr)
def test_bad_steps(schedule, step, error):
    shown = step[1] if error is ValueError and isinstance(step, np.ndarray) else repr(step)
    with pytest.raises(error, match=r"^step must ") as raised:
        schedule(step)
    assert str(shown) in str(raised.value)


GOOD = {
    constant: {"lr": 0.1},
    step_decay: {"lr": 0.1, "every": 30, "factor": 0.5},
    exponential: {"lr": 0.1, "rate": 0.9},
    inverse_time: {"lr": 0.1, "rate": 0.9},
    inverse_sqrt: {"lr": 0.1, "warmup_steps": 10},
    polynomial: {"lr": 0.1, "total_steps": 10},
    cosine: {"lr": 0.1, "total_steps": 10},
    cosine_restarts: {"lr": 0.1, "restart_steps": 10},
    one_cycle: {"max_lr": 0.1, "total_steps": 10},
    warmup_stable_decay: {"lr": 0.1, "warmup_steps": 1, "stable_steps": 2, "decay_steps": 3},
    warmup: {"schedule": 0.1, "steps": 10},
    piecewise: {"boundaries": [10, 20], "values": [0.1, 0.2, 0.3]},
    join: {"schedules": [0.1, constant(0.2), 0.3], "boundaries": [10, 20]},
}
BAD = {
    "lr": BAD_RATES,
    "max_lr": BAD_RATES,
    "min_lr": [*BAD_RATES, (0.2, ValueError)],
    "factor": [*BAD_RATES, (0, ValueError), (1.1, ValueError)],
    "rate": BAD_RATES,
    "power": [*BAD_RATES, (0, ValueError)],
    "start": [*BAD_RATES, (1.1, ValueError)],
    "warmup_fraction": [*BAD_RATES, (1, ValueError), (1.5, ValueError)],
    **{name: [*BAD_RATES, (0.9, ValueError)] for name in ("initial_divisor", "final_divisor")},
    **dict.fromkeys(("steps", "stable_steps", "warmup_steps"), BAD_COUNTS),
    **{
        name: [*BAD_COUNTS, (0, ValueError)]
        for name in ("every", "total_steps", "decay_steps", "restart_steps", "multiplier")
    },
    "annealing": [(1, TypeError), (None, TypeError), ("cos", ValueError)],
    "three_phase": [(x, TypeError) for x in (1, "yes", None)],
    "schedule": [*BAD_RATES, (math.sin, TypeError)],
    "schedules": [
        (0.1, TypeError),
        (None, TypeError),
        ([0.1, 0.2], ValueError),
        ([0.1] * 4, ValueError),
        *(([0.1, bad, 0.3], error) for bad, error in [*BAD_RATES, (math.sin, TypeError)]),
    ],
    "values": [
        (0.1, TypeError),
        ({0.1, 0.2, 0.3}, TypeError),
        ([0.1, 0.2], ValueError),
        ([], ValueError),
        *(([0.1, bad, 0.3], error) for bad, error in BAD_RATES),
    ],
    "boundaries": [
        (10, TypeError),
        (None, TypeError),
        ({10: 20}, TypeError),
        ([20, 10], ValueError),
        ([10, 10], ValueError),
        *(([10, bad], error) for bad, error in [*BAD_COUNTS, (0, ValueError)]),
    ],
}
BAD_CALLS = [
    pytest.param(factory, name, bad, error, id=f"{factory.__name__}-{name}-{str(bad)[:30]}")
    for factory in GOOD
    for name in inspect.signature(factory).parameters
    for bad, error in BAD[name]
] + [
    pytest.param(exponential, "rate", 0, ValueError, id="exponential-rate-0"),
    pytest.param(exponential, "rate", 1.1, ValueError, id="exponential-rate-1.1"),
    pytest.param(inverse_sqrt, "warmup_steps", 0, ValueError, id="inverse_sqrt-warmup_steps-0"),
]


def test_every_factory_is_called_badly():
    assert set(GOOD) == set(FACTORIES.values())


@pytest.mark.parametrize(("factory", "name", "bad", "error"), BAD_CALLS)
def test_bad_arguments(factory, name, bad, error):
    factory(**GOOD[factory])
    with pytest.raises(error, match=rf"^{name}(\[\d\])? must ") as raised:
        factory(**{**GOOD[factory], name: bad})
    culprit = bad[1] if f"{name}[1]" in str(raised.value) else bad
    assert str(culprit) in str(raised.value)


def test_three_phases_leave_steps_for_the_third():
    with pytest.raises(ValueError, match=r"warmup_fraction must be from 0 to below 0\.5, got 0\.5"):
        one_cycle(0.1, 100, 0.5, three_phase=True)


# The same bits everywhere ------------------------------------------------------------------------


def digests() -> str:
    """Printed in a subprocess and compared with this process's."""
    return "\n".join(
        f"{schedule} {hashlib.sha256(schedule(np.arange(3000)).tobytes()).hexdigest()}"
        for schedule in EXAMPLES
    )


@needs_glibc
def test_bits_do_not_depend_on_the_processor():
    assert digests_on_an_old_processor("test_schedules") == digests()

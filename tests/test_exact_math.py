"""Accuracy of the core's exp, log, cos(pi x) and power against `decimal`; equal bits everywhere."""

import hashlib
import math
import sys
from decimal import Decimal, Overflow, localcontext
from fractions import Fraction

import numpy as np
import pytest

from gradstep import _core
from oracle import OLDER_PROCESSOR, needs_glibc, python

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628621")
LN2 = 0.6931471805599453  # written out: math.log may differ in the subprocess
TINY = 5e-324
MIN_NORMAL = sys.float_info.min
MAX = sys.float_info.max


@pytest.fixture(autouse=True)
def sixty_digits():
    with localcontext() as context:
        context.prec = 60
        context.traps[Overflow] = False
        yield


def ulps(value: float, exact: Decimal) -> float:
    """The error in units of the last place of the exact result."""
    rounded = float(exact)
    if math.isinf(rounded):
        return 0.0 if value == rounded else math.inf
    return abs(float((Decimal(value) - exact) / Decimal(math.ulp(rounded))))


def neighbours(*values: float) -> list[float]:
    """Each value and the two floats on either side of it."""
    near = []
    for value in values:
        below, above = math.nextafter(value, -math.inf), math.nextafter(value, math.inf)
        near += [
            math.nextafter(below, -math.inf),
            below,
            value,
            above,
            math.nextafter(above, math.inf),
        ]
    return [x for x in near if math.isfinite(x)]


def random_doubles(count: int, seed: int) -> np.ndarray:
    """Positive doubles of every magnitude, denormals too: uniform over their bit patterns."""
    bits = np.random.default_rng(seed).integers(1, 0x7FF0000000000000, count, dtype=np.int64)
    return bits.view(np.float64)


rng = np.random.default_rng(0)

EXP_INPUTS = np.array(
    [
        *neighbours(
            0.0, MIN_NORMAL, -MIN_NORMAL, 1e-300, 1e-17, -1e-17, 2.0**-53, -(2.0**-54), 1, -1
        ),
        *neighbours(*((k + 0.5) * LN2 for k in range(-1074, 1024, 41))),  # where k rounds
        *neighbours(*(k * LN2 for k in range(-1074, 1024, 53))),
        *neighbours(709.782712893384, 709.0, -708.3964185322641, -745.1332191019411, -744.0),
        *rng.uniform(-745.2, 709.79, 4000),
        *rng.uniform(-745.2, -708.0, 500),  # denormal results
        *rng.uniform(-1, 1, 2000),
        *random_doubles(500, seed=1) * rng.choice([-1, 1], 500),
    ]
)

LOG_INPUTS = np.array(
    [
        *(TINY * k for k in range(1, 9)),
        *neighbours(MIN_NORMAL, MAX, 0.5, 1, 2, math.e, math.pi),
        *neighbours(*(2.0**k for k in range(-1060, 1024, 61))),
        *neighbours(*(math.sqrt(2) * 2.0**k for k in range(-1020, 1023, 61))),  # where 1 + f folds
        *(1 + k * 2.0**-52 for k in range(1, 40)),
        *(1 - k * 2.0**-53 for k in range(1, 40)),
        *(1 + rng.uniform(-1e-3, 1e-3, 1000)),
        *rng.uniform(0.5, 2, 2000),
        *random_doubles(4000, seed=2),
    ]
)

COS_INPUTS = np.array(
    [
        *neighbours(*(k / 4 for k in range(-9, 10))),
        *neighbours(*(k / 6 for k in range(-13, 14))),
        *neighbours(1e15 + 0.25, 2.0**51 + 0.5, 2.0**52 + 1, 2.0**53 - 1, 1e300, MAX, -MAX),
        *rng.uniform(0, 1, 2000),
        *rng.uniform(-1e6, 1e6, 1000),
        *random_doubles(1000, seed=3),
    ]
)

POWER_INPUTS = np.array(
    [
        *(
            (x, y)
            for x in (1e-300, 0.3, 0.96, 1.0, 1.1, 7.0, 1e300)
            for y in (-2.5, -1, -1e-9, 0.5, 0.75, 1.5)
        ),
        *zip(rng.uniform(0, 1, 1000), rng.uniform(0, 20, 1000), strict=True),
        *zip(rng.uniform(0.9, 1, 1000), rng.uniform(0, 1e4, 1000), strict=True),
        *zip(random_doubles(500, seed=4), rng.uniform(-1, 1, 500), strict=True),
    ]
)


def cos_pi(x: float) -> Decimal:
    """Reduced to [0, 1/2] exactly, then Taylor."""
    r = Fraction(x) % 2
    r = min(r, 2 - r)
    sign = 1
    if r > Fraction(1, 2):
        r, sign = 1 - r, -1
    z = (PI * r.numerator / r.denominator) ** 2
    total = term = Decimal(1)
    for n in range(2, 80, 2):
        term *= -z / (n * (n - 1))
        total += term
    return sign * total


def test_exp_is_within_1_1_ulp():
    for x, value in zip(EXP_INPUTS.tolist(), _core.exp(EXP_INPUTS).tolist(), strict=True):
        assert ulps(value, Decimal(x).exp()) <= 1.1, x


def test_log_is_within_2_ulp():
    for x, value in zip(LOG_INPUTS.tolist(), _core.log(LOG_INPUTS).tolist(), strict=True):
        assert ulps(value, Decimal(x).ln()) <= 2, x


def test_cos_pi_is_within_2_ulp_of_1():
    for x, value in zip(COS_INPUTS.tolist(), _core.cos_pi(COS_INPUTS).tolist(), strict=True):
        assert abs(Decimal(value) - cos_pi(x)) <= 2 * Decimal(math.ulp(1.0)), x
        assert abs(value) <= 1, x


def test_power_error_grows_with_the_exponent_of_e_alone():
    # log is off by 2 ulp at most, the product by half of one, exp by 2: (2.5 |y ln x| + 2) ulp.
    values = _core.power(POWER_INPUTS[:, 0], POWER_INPUTS[:, 1])
    for (x, y), value in zip(POWER_INPUTS.tolist(), values.tolist(), strict=True):
        exponent = Decimal(y) * Decimal(x).ln()
        assert ulps(value, exponent.exp()) <= 2.5 * abs(float(exponent)) + 2, (x, y)


@pytest.mark.parametrize("base", [0.9, 0.999, 1.1, 1 / 3, 0.9999999])
def test_whole_powers_lose_half_an_ulp_per_factor(base):
    for n in [*range(40), 63, 64, 65, 100, 255, 600, 999, 1000]:
        exact = Fraction(base) ** n
        if exact > Fraction(MIN_NORMAL):
            error = abs(Fraction(_core.power(base, n)) / exact - 1)
            assert error <= n * Fraction(1, 2**53), n


def test_whole_powers_are_exact_where_the_result_is_a_double():
    assert [_core.power(2.0, n) for n in range(1024)] == [2.0**n for n in range(1024)]
    assert [_core.power(0.5, n) for n in range(1075)] == [math.ldexp(1, -n) for n in range(1075)]
    assert [_core.power(3.0, n) for n in range(34)] == [3**n for n in range(34)]
    assert [_core.power(-3.0, n) for n in range(34)] == [(-3) ** n for n in range(34)]


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("exp", (0.0,), 1.0),
        ("exp", (-0.0,), 1.0),
        ("exp", (math.inf,), math.inf),
        ("exp", (-math.inf,), 0.0),
        ("exp", (MAX,), math.inf),
        ("exp", (-MAX,), 0.0),
        ("exp", (math.nan,), math.nan),
        ("log", (1.0,), 0.0),
        ("log", (0.0,), -math.inf),
        ("log", (-0.0,), -math.inf),
        ("log", (-TINY,), math.nan),
        ("log", (-math.inf,), math.nan),
        ("log", (math.inf,), math.inf),
        ("log", (math.nan,), math.nan),
        ("cos_pi", (0.0,), 1.0),
        ("cos_pi", (0.5,), 0.0),
        ("cos_pi", (-1.5,), 0.0),
        ("cos_pi", (1.0,), -1.0),
        ("cos_pi", (TINY,), 1.0),
        ("cos_pi", (2.0**53 - 1,), -1.0),
        ("cos_pi", (MAX,), 1.0),
        ("cos_pi", (math.inf,), math.nan),
        ("cos_pi", (-math.inf,), math.nan),
        ("cos_pi", (math.nan,), math.nan),
        ("power", (0.0, 0.0), 1.0),
        ("power", (0.0, 3.0), 0.0),
        ("power", (0.0, 0.5), 0.0),
        ("power", (0.0, -0.5), math.inf),
        ("power", (1.0, 0.3), 1.0),
        ("power", (4.0, 0.5), 2.0),
        ("power", (0.5, 2.0**53), 0.0),
        ("power", (2.0, math.inf), math.inf),
        ("power", (2.0, -math.inf), 0.0),
        ("power", (math.inf, 0.5), math.inf),
        ("power", (math.inf, -0.5), 0.0),
        ("power", (math.nan, 0.5), math.nan),
        ("power", (2.0, math.nan), math.nan),
        ("power", (-2.0, 0.5), math.nan),
    ],
)
def test_special_values(function, arguments, expected):
    value = getattr(_core, function)(*arguments)
    assert value == expected or (math.isnan(value) and math.isnan(expected))
    assert math.copysign(1, value) == math.copysign(1, expected) or math.isnan(expected)


def results() -> dict[str, np.ndarray]:
    return {
        "exp": _core.exp(EXP_INPUTS),
        "log": _core.log(LOG_INPUTS),
        "cos_pi": _core.cos_pi(COS_INPUTS),
        "power": _core.power(POWER_INPUTS[:, 0], POWER_INPUTS[:, 1]),
        "whole power": _core.power(POWER_INPUTS[:, 0], np.arange(len(POWER_INPUTS)) % 300),
    }


def test_one_number_has_the_bits_of_an_array():
    for name, inputs in [("exp", EXP_INPUTS), ("log", LOG_INPUTS), ("cos_pi", COS_INPUTS)]:
        one_by_one = np.array([getattr(_core, name)(x) for x in inputs.tolist()])
        assert one_by_one.tobytes() == results()[name].tobytes(), name
    one_by_one = np.array([_core.power(x, y) for x, y in POWER_INPUTS.tolist()])
    assert one_by_one.tobytes() == results()["power"].tobytes()


def digests() -> str:
    """Printed in a subprocess and compared with this process's."""
    return "\n".join(
        f"{name} {hashlib.sha256(v.tobytes()).hexdigest()}" for name, v in results().items()
    )


def digests_on_an_old_processor(module: str) -> str:
    """What `module.digests()` gives where the C library sees an older processor."""
    code = f"import {module}; print({module}.digests())"
    return python(code, **OLDER_PROCESSOR).strip()


@needs_glibc
def test_bits_do_not_depend_on_the_processor():
    assert digests_on_an_old_processor("test_exact_math") == digests()


@needs_glibc
def test_those_of_the_c_library_do():
    """Otherwise the tests of an older processor prove nothing here."""
    code = "import math; print(hash(tuple(math.exp(x / 1000) for x in range(-9000, 9000))))"
    if python(code, **OLDER_PROCESSOR) == python(code):
        pytest.skip("this C library or processor has one variant only")

"""What was published for skipping steps of Wan 2.1, by architecture: facts that somebody measured on the weights.

Sources: the coefficients, TeaCache4Wan2.1 of ali-vilab/TeaCache (those for the time embedding), with its middle
thresholds; the magnitude ratios, MagCache4Wan2.1 of Zehong-Ma/MagCache at df81cb1, those of the prompt's answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cygnet.models.dit.config import I2V_14B, T2V_1_3B, T2V_14B, VACE_1_3B, VACE_14B, DiTConfig

SMALL_PIXELS = 832 * 480
"""The two I2V-14B models share an architecture; a video of at most this many pixels is taken for one of 480P."""


@dataclass(frozen=True)
class Coefficients:
    """TeaCache's polynomial, highest power first, and the threshold that goes with it."""

    polynomial: tuple[float, ...]
    threshold: float


_TEA_T2V_1_3B = Coefficients((2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01), 0.07)
_TEA_T2V_14B = Coefficients((-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404), 0.15)
_TEA_I2V_480P = Coefficients((-3.02331670e02, 2.23948934e02, -5.25463970e01, 5.87348440e00, -2.01973289e-01), 0.19)
_TEA_I2V_720P = Coefficients((-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683), 0.20)

# One ratio per step: how large the blocks' sum is beside that of the step before. The first has none before it.
_MAG_T2V_1_3B = (
    1.0,
    1.0124,
    1.00166,
    0.99791,
    0.99682,
    0.99634,
    0.99567,
    0.99416,
    0.99578,
    0.9957,
    0.99511,
    0.99535,
    0.99552,
    0.99541,
    0.9954,
    0.99489,
    0.99518,
    0.99484,
    0.99481,
    0.99415,
    0.99419,
    0.99396,
    0.99388,
    0.99349,
    0.99309,
    0.9927,
    0.99228,
    0.99171,
    0.99137,
    0.99068,
    0.99005,
    0.98944,
    0.98849,
    0.98758,
    0.98644,
    0.98504,
    0.9836,
    0.98202,
    0.97977,
    0.97717,
    0.9741,
    0.97003,
    0.96538,
    0.9593,
    0.95086,
    0.94013,
    0.92402,
    0.90241,
    0.86821,
    0.81838,
)
_MAG_T2V_14B = (
    1.0,
    1.02504,
    1.00025,
    0.9985,
    0.99779,
    0.9966,
    0.99482,
    0.99467,
    0.99664,
    0.99434,
    0.99533,
    0.99468,
    0.99438,
    0.99516,
    0.99384,
    0.99404,
    0.99517,
    0.99409,
    0.99428,
    0.99347,
    0.99418,
    0.99271,
    0.99313,
    0.99215,
    0.99218,
    0.99216,
    0.99163,
    0.99138,
    0.98982,
    0.98996,
    0.9887,
    0.98772,
    0.98767,
    0.98573,
    0.98501,
    0.9838,
    0.98177,
    0.98037,
    0.97678,
    0.97546,
    0.97184,
    0.96711,
    0.96349,
    0.95629,
    0.94926,
    0.93964,
    0.92511,
    0.90693,
    0.8796,
    0.86111,
)
_MAG_I2V_480P = (
    1.0,
    0.98783,
    0.97559,
    0.98311,
    0.98202,
    0.9888,
    0.98762,
    0.98957,
    0.99052,
    0.99383,
    0.98857,
    0.99065,
    0.98845,
    0.99057,
    0.98957,
    0.98601,
    0.98823,
    0.98756,
    0.98808,
    0.98721,
    0.98571,
    0.98543,
    0.98157,
    0.98411,
    0.97952,
    0.98149,
    0.9774,
    0.97825,
    0.97355,
    0.97085,
    0.97056,
    0.96588,
    0.96113,
    0.9567,
    0.94961,
    0.93973,
    0.93217,
    0.91878,
    0.90955,
    0.92617,
)
_MAG_I2V_720P = (
    1.0,
    0.99428,
    0.98588,
    0.98273,
    0.99018,
    0.98911,
    0.98646,
    0.99454,
    0.9891,
    0.99124,
    0.99102,
    0.99215,
    0.99515,
    0.99576,
    0.99068,
    0.99097,
    0.99166,
    0.99041,
    0.99201,
    0.99101,
    0.98599,
    0.98845,
    0.98848,
    0.98862,
    0.98718,
    0.98497,
    0.98264,
    0.98389,
    0.97938,
    0.97535,
    0.97498,
    0.973,
    0.96827,
    0.96261,
    0.95335,
    0.94649,
    0.93397,
    0.91636,
    0.89088,
    0.8679,
)
_MAG_VACE_1_3B = (
    1.0,
    1.00129,
    1.00056,
    0.99776,
    0.99726,
    0.99725,
    0.9958,
    0.99703,
    0.99863,
    0.99735,
    0.99714,
    0.99697,
    0.9969,
    0.99695,
    0.99697,
    0.99608,
    0.99721,
    0.99649,
    0.99659,
    0.99727,
    0.99603,
    0.99652,
    0.99635,
    0.9958,
    0.99581,
    0.99573,
    0.99531,
    0.99505,
    0.99481,
    0.99426,
    0.99403,
    0.99357,
    0.99302,
    0.99243,
    0.9916,
    0.99085,
    0.98985,
    0.98857,
    0.98717,
    0.98551,
    0.98301,
    0.9805,
    0.97635,
    0.97183,
    0.96496,
    0.95526,
    0.94102,
    0.91809,
    0.87871,
    0.80141,
)

_COEFFICIENTS: Mapping[DiTConfig, Coefficients] = {T2V_1_3B: _TEA_T2V_1_3B, T2V_14B: _TEA_T2V_14B}
_RATIOS: Mapping[DiTConfig, tuple[float, ...]] = {
    T2V_1_3B: _MAG_T2V_1_3B,
    T2V_14B: _MAG_T2V_14B,
    VACE_1_3B: _MAG_VACE_1_3B,
    VACE_14B: _MAG_T2V_14B,  # the same numbers were published for both
}


def coefficients(config: DiTConfig, pixels: int) -> Coefficients | None:
    """TeaCache's for a model and videos of so many pixels; None where nothing was published."""
    if config == I2V_14B:
        return _TEA_I2V_480P if pixels <= SMALL_PIXELS else _TEA_I2V_720P
    return _COEFFICIENTS.get(config)


def magnitude_ratios(config: DiTConfig, pixels: int) -> tuple[float, ...] | None:
    """MagCache's, one per step of the published number of steps; None where nothing was published."""
    if config == I2V_14B:
        return _MAG_I2V_480P if pixels <= SMALL_PIXELS else _MAG_I2V_720P
    return _RATIOS.get(config)

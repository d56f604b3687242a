"""Layers are whole: what the fullest of several devices has at least, however layers are spread over them."""

from __future__ import annotations

import numpy as np


def fullest(weights: np.ndarray, devices: int) -> float:
    """The least that the device with most of the weights can have, if each weight is on one device.

    It has the mean at least; and of the `k · devices + 1` greatest weights some device has `k + 1`.
    """
    summed = np.concatenate([[0.0], np.cumsum(np.sort(weights)[::-1])])
    times = np.arange((len(weights) - 1) // devices + 1)
    last = times * devices + 1
    several = summed[last] - summed[last - times - 1]
    return max(float(summed[-1]) / devices, float(several.max()))

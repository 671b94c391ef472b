"""Forward and backward transfer from a matrix of scores."""

from __future__ import annotations

import numpy as np
import pytest

from dist_teracon.evaluate.transfer import backward_transfer, forward_transfer


def test_transfer():
    scores = [[0.5], [0.4, 0.2], [0.6, 0.1, 0.0]]
    back = backward_transfer(scores)
    assert back.percent[:2] == pytest.approx([20.0, -50.0])
    assert back.absolute[:2] == pytest.approx([0.1, -0.1])
    assert (back.percent[2], back.absolute[2]) == (None, None)
    forward = forward_transfer(scores, [0.5, 0.1, 0.0])
    assert forward.percent == [None, pytest.approx(100.0), None]  # a zero denominator gives none
    assert forward.absolute == [None, pytest.approx(0.1), 0.0]
    assert backward_transfer([[0.3]]).percent == [None]
    missing = forward_transfer([[0.5], [0.4, None]], [0.5, 0.2])
    assert (missing.percent, missing.absolute) == ([None, None], [None, None])
    assert np.isfinite([value for value in back.percent if value is not None]).all()

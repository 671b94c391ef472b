"""Masks of labels are kept whole and small, and grow with the labels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dist_teracon.evaluate.seen_labels import packed_labels, unpacked_labels


@pytest.mark.parametrize("labels", [0, 1, 7, 8, 9, 1000])
def test_a_mask_comes_back_with_later_labels_unseen(labels):
    seen = np.random.default_rng(labels).random(labels) < 0.5
    kept = json.loads(json.dumps(packed_labels(seen)))
    assert unpacked_labels(kept, labels).tolist() == seen.tolist()
    assert unpacked_labels(kept, labels + 3).tolist() == [*seen.tolist(), False, False, False]


def test_half_a_million_labels_are_some_hundred_kilobytes_at_most():
    seen = np.random.default_rng(0).random(645_974) < 0.5
    assert len(json.dumps(packed_labels(seen))) < 120_000
    assert len(json.dumps(packed_labels(np.ones(645_974, bool)))) < 1_000


def test_what_is_no_mask_is_refused_and_of_before_there_is_none():
    assert unpacked_labels(None, 5) is None
    bits = packed_labels(np.ones(3, bool))["bits"]
    for value in ({"labels": 5}, {"labels": 5, "bits": "!"}, {"labels": 5, "bits": "AAAA"}, {"labels": "x", "bits": bits}):
        with pytest.raises(ValueError, match="no mask of labels"):
            unpacked_labels(value, 5)

"""A toy metric, as docs/extending.md shows it."""

from __future__ import annotations

from dist_teracon.evaluate.metrics import Float, Outcomes


def sure_hit(found: Outcomes, k: int) -> Float:
    """1 where the target is among the first k in every order of ties, else 0; mean over examples."""
    return (found.greater + found.equal < k).astype(float)

"""`dist-teracon bench ceiling`: what can be inferred of `six-tasks-v1`'s users from their sequences alone.

The oracle knows a user's latent vector; a model sees the sequence. Here the true items' vectors are known and the user's is not: its
posterior given the sequence is taken as normal about its mode (Laplace's method), and labels are ranked by their probability averaged
over draws from it. No model that reads sequences can expect more than this, up to that approximation and luck.

Legend: U users, L positions, V items, D latent dimensions, E examples, Y labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dist_teracon.arguments import as_count
from dist_teracon.bench.measure import circumstances, markdown_table
from dist_teracon.data.synthetic import six_tasks
from dist_teracon.data.synthetic.six_tasks import Float, Int
from dist_teracon.errors import ConfigError

# Weights of the generator's logits, as in docs/method.md, Synthetic data: the user's and the previous item's part.
_OF_USER, _OF_PREVIOUS = 1.5 / 4, 0.75 / 4


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="dist-teracon bench ceiling", description="The best scores that sequences of six-tasks-v1 allow.")
    parser.add_argument("--users", type=as_count, default=3000, help="the set's first users (default: %(default)s)")
    parser.add_argument("--draws", type=as_count, default=64, help="of each user's vector (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.users < 1 or options.draws < 1:
        raise ConfigError("bench ceiling: --users and --draws are at least 1")
    scores = ceiling(options.users, draws=options.draws)
    rows = [
        [name, str(hits.size), f"{hits.mean():.4f}", f"{hits.std() / hits.size**0.5:.4f}"] for name, hits in scores.items() if hits.size
    ]
    print(f"six-tasks-v1, first {options.users} users; {circumstances('numpy')}\n")
    print(markdown_table(["task", "examples", "best from sequences", "standard error"], rows))


def ceiling(users: int, *, draws: int, seed: int = 0) -> dict[str, Float]:
    """Return by task what each example scores, [E]: reciprocal rank within 5, or 1 for the right class."""
    generator = np.random.Generator(np.random.PCG64(seed))
    latent_UD = six_tasks._user_vectors(users)
    values, offsets = six_tasks._draw_sequences(latent_UD)
    items_VD, popularity_V = six_tasks._item_vectors()
    last, before = values[offsets[1:] - 1], values[offsets[1:] - 2]
    known = _draws_of_users(values, offsets[:-1], offsets[1:] - 1, draws, generator)

    def next_logits(user_D: Float, user: int) -> Float:
        return np.asarray(popularity_V + items_VD @ (_OF_USER * user_D + _OF_PREVIOUS * items_VD[before[user]]))

    probabilities = np.stack([np.mean([_softmax(next_logits(z, user)) for z in known[user]], axis=0) for user in range(users)])
    found = {"next": six_tasks._reciprocal_ranks(probabilities, last)}
    whole = _draws_of_users(values, offsets[:-1], offsets[1:], draws, generator)
    for task in six_tasks._TASKS:
        vectors_YD, popularity_Y, _ = six_tasks._label_vectors(task)
        table = six_tasks._draw_labels(task, latent_UD)
        likely_UY = np.mean(
            [_softmax(six_tasks._label_logits(task, z_UD, vectors_YD, popularity_Y)) for z_UD in whole.swapaxes(0, 1)], axis=0
        )
        likely_EY = likely_UY[np.repeat(table.users, np.diff(table.offsets))]
        profile = task.kind == "profile"
        hits = (likely_EY.argmax(1) == table.values).astype(np.float64) if profile else six_tasks._reciprocal_ranks(likely_EY, table.values)
        found[task.name] = hits
    return found


def _draws_of_users(values: NDArray[np.int32], starts: Int, ends: Int, draws: int, generator: np.random.Generator) -> Float:
    """Draw users' vectors given their items values[starts:ends]: [U, draws, D]."""
    items_VD, popularity_V = six_tasks._item_vectors()
    made = []
    for start, end in zip(starts, ends, strict=True):
        mode_D, precision_DD = _posterior(values[start:end], items_VD, popularity_V)
        noise = generator.standard_normal((draws, mode_D.size))
        # with precision LLᵀ, L⁻ᵀ·noise has its inverse as covariance
        made.append(mode_D + np.linalg.solve(np.linalg.cholesky(precision_DD).T, noise.T).T)
    return np.stack(made)


def _posterior(sequence_L: NDArray[np.int32], items_VD: Float, popularity_V: Float) -> tuple[Float, Float]:
    """Return mode [D] and precision [D, D] of a user's vector by Newton's method; the log posterior is concave."""
    D = items_VD.shape[1]
    seen_LD = items_VD[sequence_L]
    base_LV = popularity_V + _OF_PREVIOUS * np.concatenate([np.zeros((1, D)), seen_LD[:-1]]) @ items_VD.T
    user_D, precision_DD = np.zeros(D), np.eye(D)
    for _ in range(20):
        chance_LV = _softmax(base_LV + _OF_USER * (items_VD @ user_D))
        mean_LD = chance_LV @ items_VD
        slope_D = _OF_USER * (seen_LD - mean_LD).sum(0) - user_D
        precision_DD = np.eye(D) + _OF_USER**2 * (items_VD.T @ (items_VD * chance_LV.sum(0)[:, None]) - mean_LD.T @ mean_LD)
        step_D = np.linalg.solve(precision_DD, slope_D)
        user_D = user_D + step_D
        if np.abs(step_D).max() < 1e-6:
            break
    return user_D, precision_DD


def _softmax(logits: Float) -> Float:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))

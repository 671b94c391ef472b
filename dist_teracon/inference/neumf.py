"""NeuMF, a small network that recommends labels to users from a vector a user, frozen or its own to learn.

He et al., "Neural collaborative filtering" (2017): a product of user and item factors (GMF) beside layers on both (MLP), trained to tell
a user's items from drawn ones. A frozen vector comes to the factors by a linear layer each.

Legend: U users, D numbers of a user's vector, Y labels, F factors, P pairs of a user and a label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_teracon.engine.eager_adam import make_adam

# The protocol.
FACTORS, EPOCHS, BATCH, LEARNING_RATE, NEGATIVES = 32, 20, 1024, 1e-3, 4
_USERS_AT_ONCE = 256


@dataclass(frozen=True)
class Pairs:
    """Which labels users took.

    Attributes:
        users, labels: int64 [P].
        num_users, num_labels: U and Y.
    """

    users: NDArray[np.int64]
    labels: NDArray[np.int64]
    num_users: int
    num_labels: int

    def not_taken(self, users: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """Return a label for each of some users that the user did not take, evenly drawn; any label for users who took nearly all."""
        taken = np.sort(self.users * self.num_labels + self.labels)
        drawn = generator.integers(0, self.num_labels, len(users))
        for _ in range(20):
            codes = users * self.num_labels + drawn
            again = np.flatnonzero(taken[np.minimum(np.searchsorted(taken, codes), len(taken) - 1)] == codes)
            if not again.size:
                break
            drawn[again] = generator.integers(0, self.num_labels, len(again))
        return drawn


class NeuMF(nn.Module):
    """The network.

    Args:
        vectors_UD: The users' frozen vectors; None for vectors of F numbers each that are learned, as published.
        users, labels: U and Y.
        seed: Of initial values.
    """

    def __init__(self, vectors_UD: Tensor | None, *, users: int, labels: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("vectors", vectors_UD)
        self.vectors: Tensor | None
        width = 0 if vectors_UD is None else vectors_UD.shape[1]
        self.user_gmf = nn.Embedding(users, FACTORS) if vectors_UD is None else nn.Linear(width, FACTORS)
        self.user_mlp = nn.Embedding(users, FACTORS) if vectors_UD is None else nn.Linear(width, FACTORS)
        self.item_gmf, self.item_mlp = nn.Embedding(labels, FACTORS), nn.Embedding(labels, FACTORS)
        self.first_user, self.first_item = nn.Linear(FACTORS, FACTORS), nn.Linear(FACTORS, FACTORS, bias=False)
        self.second = nn.Linear(FACTORS, FACTORS // 2)
        self.out = nn.Linear(FACTORS + FACTORS // 2, 1)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Embedding):
                    layer.weight.normal_(0, 0.01, generator=generator)
                elif isinstance(layer, nn.Linear):
                    layer.weight.uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
                    if layer.bias is not None:
                        layer.bias.zero_()

    def forward(self, users: Tensor, labels: Tensor) -> Tensor:
        """Return the logits of pairs, [P]."""
        own = users if self.vectors is None else self.vectors[users]
        product = self.user_gmf(own) * self.item_gmf(labels)
        deep = torch.relu(self.first_user(self.user_mlp(own)) + self.first_item(self.item_mlp(labels)))
        return self.out(torch.cat([product, torch.relu(self.second(deep))], dim=1))[:, 0]

    @torch.no_grad()
    def all_labels(self, users: Tensor) -> Tensor:
        """Return some users' logits of all labels, [·, Y]."""
        own = users if self.vectors is None else self.vectors[users]
        weight = self.out.weight[0]
        product = (self.user_gmf(own) * weight[:FACTORS]) @ self.item_gmf.weight.T
        items = self.first_item(self.item_mlp.weight)
        parts = [torch.relu(self.second(torch.relu(row + items))) @ weight[FACTORS:] for row in self.first_user(self.user_mlp(own))]
        return product + torch.stack(parts) + self.out.bias


Score = Callable[[Callable[[NDArray[np.int64]], Tensor]], float]


def fit(vectors_UD: NDArray[np.float32] | None, pairs: Pairs, validate: Score, *, seed: int) -> NeuMF:
    """Train a network and return it after its best epoch.

    Args:
        vectors_UD: As of `NeuMF`.
        pairs: What is learned.
        validate: From a function of users to their logits of all labels to a score, higher is better.
        seed: Of initial values, order and drawn labels.
    """
    vectors = None if vectors_UD is None else _standardised(vectors_UD, pairs)
    network = NeuMF(vectors, users=pairs.num_users, labels=pairs.num_labels, seed=seed)
    optimiser = make_adam(torch.optim.Adam, network.parameters(), lr=LEARNING_RATE)
    generator = np.random.default_rng(seed)
    best, kept = -np.inf, network.state_dict()
    for _ in range(EPOCHS):
        users = np.concatenate([pairs.users, np.repeat(pairs.users, NEGATIVES)])
        labels = np.concatenate([pairs.labels, pairs.not_taken(users[len(pairs.users) :], generator)])
        targets = np.zeros(len(users), dtype=np.float32)
        targets[: len(pairs.users)] = 1
        order = generator.permutation(len(users))
        for chosen in np.array_split(order, max(1, -(-len(order) // BATCH))):
            optimiser.zero_grad()
            logits = network(torch.from_numpy(users[chosen]), torch.from_numpy(labels[chosen]))
            nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets[chosen])).backward()
            optimiser.step()
        score = validate(scores_of(network))
        if score > best:
            best, kept = score, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return network


def scores_of(network: NeuMF) -> Callable[[NDArray[np.int64]], Tensor]:
    """Return the function from users to their logits of all labels."""
    return lambda users: torch.cat([network.all_labels(part) for part in torch.from_numpy(users).split(_USERS_AT_ONCE)])


def _standardised(vectors_UD: NDArray[np.float32], pairs: Pairs) -> Tensor:
    """Return vectors with mean 0 and deviation 1 over users who are learned from."""
    train = np.unique(pairs.users)
    mean, scale = vectors_UD[train].mean(axis=0), vectors_UD[train].std(axis=0)
    scale[scale < 1e-6] = 1.0
    return torch.from_numpy((vectors_UD - mean) / scale)

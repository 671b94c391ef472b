"""Side features in a backbone: where they are read, that nothing is read of closed ones, how rows travel, how tables grow."""

from __future__ import annotations

import pytest
import torch

from dist_teracon.config.model import ModelConfig
from dist_teracon.data.batches import PackedBatch
from dist_teracon.models.backbone import Backbone, make_backbone
from dist_teracon.models.input_embedding import InputSizes, ItemFeatures, UserFeatures
from dist_teracon.train.item_growth import with_new_labels

ITEMS = torch.tensor([[0, 0], [0, 0], [1, 2], [2, 1], [1, 0]], dtype=torch.int32)
SIZES = InputSizes(user=(3, 4), item=(3, 3), item_values=ITEMS)
ROWS = {"sequences": [[2, 3, 4], [4], []], "user_features": [[1, 3], [0, -1], [2, 0]]}


def made(pooling: str = "concat", name: str = "nextitnet", *, inputs: InputSizes = SIZES) -> Backbone:
    settings = {"nextitnet": {"dilations": [1]}, "sasrec": {"layers": 1}}[name]
    config = ModelConfig.model_validate({"channels": 4, "pooling": pooling, "dropout": 0.5, "backbone": {"name": name, **settings}})
    return make_backbone(config, num_items=5, generator=torch.Generator().manual_seed(0), inputs=inputs)


def filled(backbone: Backbone) -> Backbone:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "_features.tables." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return backbone


def encoded(backbone: Backbone, positions: str = "last", **rows: object) -> torch.Tensor:
    return backbone.encode(PackedBatch.from_sequences(**{**ROWS, **rows}).sequences, None, positions=positions)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nextitnet", "sasrec"])
@pytest.mark.parametrize(("pooling", "width"), [("last", 4), ("concat", 8)])
def test_a_network_begins_as_the_one_without(name: str, pooling: str, width: int) -> None:
    backbone, plain = made(pooling, name), made(pooling, name, inputs=InputSizes())
    assert (backbone.output_dim, plain.output_dim) == (width + 4, width)
    for positions in ("last", "all"):
        found = encoded(backbone, positions)
        assert torch.equal(found[:, :width], encoded(plain, positions))
        assert not found[:, width:].any()


def test_items_features_are_added_to_their_embeddings() -> None:
    backbone = filled(made())
    features = backbone.item_features
    assert features is not None
    first, second = features.tables
    assert torch.equal(features(torch.tensor([[2], [4]])), torch.stack([first[1] + second[2], first[1] + second[0]])[:, None])
    plain = made(inputs=InputSizes())
    with torch.no_grad():
        plain.item_embedding.weight += torch.stack([first[a] + second[b] for a, b in ITEMS.tolist()])
    assert torch.allclose(encoded(backbone)[:, :8], encoded(plain), atol=1e-6)


def test_users_features_stand_beside_every_output() -> None:
    backbone = filled(made())
    features = backbone.user_features
    assert features is not None
    first, second = features.tables
    own = torch.stack([first[1] + second[3], first[0], first[2] + second[0]])
    assert torch.allclose(encoded(backbone)[:, 8:], own)
    assert torch.allclose(encoded(backbone, "all")[:, 8:], own[[0, 0, 0, 1]])


def test_nothing_is_read_of_a_closed_feature_and_its_table_takes_part() -> None:
    backbone = filled(made())
    batch = PackedBatch.from_sequences([[2], [3]], user_features=[[-1, 1], [-1, 2]])
    out = backbone.encode(batch.sequences, None, positions="last")[:, 8:]
    first, second = backbone.user_features.tables  # type: ignore[union-attr]
    assert torch.equal(out, second[[1, 2]])
    out.sum().backward()
    assert first.grad is not None and not first.grad.any()
    assert second.grad is not None and second.grad[[1, 2]].eq(1).all()


def test_dropout_reaches_them() -> None:
    backbone = filled(made())
    batch = PackedBatch.from_sequences(**{**ROWS, "sequences": [[2, 3, 4], [4], [2]]})  # type: ignore[arg-type]
    plain = backbone.encode(batch.sequences, None, positions="last")
    noisy = backbone.encode(batch.sequences, None, positions="last", dropout_key=torch.tensor([3, 5, 7]))
    assert ((noisy[:, 8:] == 0) | torch.isclose(noisy[:, 8:], 2 * plain[:, 8:])).all()
    assert (noisy[:, 8:] == 0).any()


def test_a_batch_without_what_is_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.input_features: the model reads features of users, and the batch has none"):
        made().encode(PackedBatch.from_sequences([[2]]).sequences, None, positions="last")


def test_items_values_travel_with_the_weights() -> None:
    taken = made(inputs=InputSizes((3, 4), (3, 3)))
    taken.load_state_dict(filled(made()).state_dict())
    assert torch.equal(taken.item_features.values, ITEMS)  # type: ignore[union-attr]
    assert torch.equal(encoded(taken), encoded(filled(made())))


def test_micro_batches_and_replayed_rows_keep_them() -> None:
    batch = PackedBatch.from_sequences([[2, 3], [4], [3, 3, 2]], user_features=[[1, 1], [2, 2], [0, -1]])
    both = batch.with_retention([(batch.packed_rows.take(torch.tensor([2, 0]).numpy()), 1)], [("past", torch.zeros(2, 3), 2)])
    assert both.user_features is not None
    assert both.user_features.tolist() == [[1, 1], [2, 2], [0, -1], [0, -1], [1, 1]]
    first, second = both.split(2)
    assert first.user_features.tolist() == [[1, 1], [0, -1], [1, 1]]  # type: ignore[union-attr]
    assert second.user_features.tolist() == [[2, 2], [0, -1]]  # type: ignore[union-attr]


class _Later:
    """A method whose data set has one more value and one more item."""

    class context:  # noqa: N801
        for_use = False

    def item_tables(self) -> list[str]:
        return []

    def state_dict(self) -> dict[str, torch.Tensor]:
        items = ItemFeatures((4,), 2, num_items=4, values=torch.tensor([[0], [0], [1], [3]]))
        users = UserFeatures((5,), 2)
        return {f"{part}.{name}": value for part, module in (("item_features", items), ("user_features", users)) for name, value in
                module.state_dict().items()}  # fmt: skip


def test_values_that_came_later_start_as_the_missing_one_and_new_items_have_theirs() -> None:
    known = {
        "item_features.tables.0": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        "item_features.values": torch.tensor([[0], [0], [1]], dtype=torch.int32),
        "user_features.tables.0": torch.tensor([[7.0, 8.0], [9.0, 10.0]]),
    }
    grown = with_new_labels(known, _Later())  # type: ignore[arg-type]
    assert grown["item_features.tables.0"].tolist() == [[1, 2], [3, 4], [5, 6], [1, 2]]
    assert grown["user_features.tables.0"].tolist() == [[7, 8], [9, 10], [7, 8], [7, 8], [7, 8]]
    assert grown["item_features.values"].tolist() == [[0], [0], [1], [3]]

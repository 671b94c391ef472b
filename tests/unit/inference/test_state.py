"""A state with one more event has the vector of the longer history: within the length limit, at its cut, and past it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dist_teracon
from dist_teracon.errors import ConfigError, DataError

EVENTS = [f"p{(7 * place) % 24:02d}" for place in range(20)]


def made(shop, folder, **model):
    from shop import CONFIG, make_shop_run

    return dist_teracon.from_pretrained(make_shop_run(shop.dataset, folder / "run", model={**CONFIG["model"], **model}))


@pytest.mark.parametrize("task", ["next", "club", "shared", "shared:open", "shared:concat"])
@pytest.mark.parametrize(
    "shape",
    [
        {"backbone": {"name": "nextitnet", "dilations": [1, 2]}},  # reads 19 positions, more than the limit of 8
        {"backbone": {"name": "nextitnet", "dilations": [1], "kernel_size": 3}, "pooling": "mean"},  # 7: within the limit
        {"backbone": {"name": "nextitnet", "dilations": [1], "kernel_size": 2}, "pooling": "last"},
        {"backbone": {"name": "sasrec", "layers": 2}},
    ],
    ids=["reach 19", "reach 7", "reach 4", "sasrec"],
)
def test_events_one_at_a_time(shop, tmp_path, shape, task):
    model = made(shop, tmp_path, **shape)
    name, _, way = task.partition(":")
    state = model.state(EVENTS[:3], name, shared=way or None)
    for end in range(4, len(EVENTS) + 1):
        before = state.vector.copy()
        longer = model.extend(state, EVENTS[end - 1])
        assert np.array_equal(state.vector, before)
        state = longer
        assert np.abs(state.vector - model.encode([EVENTS[:end]], name, shared=way or None)[0]).max() < 1e-5, end


def test_a_long_life(shop, tmp_path):
    """Thousands of events, each of which goes on from the sums and inputs before it, past the limit of 8 from the ninth on."""
    model = made(shop, tmp_path, backbone={"name": "nextitnet", "dilations": [1]}, pooling="concat")
    table = model.method.model().backbone.item_embedding.weight.data
    # of sizes far apart, so that sums round: what a float32 sum keeps of the small ones is gone when a large one leaves
    table.mul_(10.0 ** torch.arange(len(table))[:, None].remainder(6))
    life = [f"p{place:02d}" for place in np.random.default_rng(0).integers(0, 24, 2_000)]
    state = model.state(life[:3], "next")
    for end in range(3, len(life)):
        state = model.extend(state, life[end])
        if end % 97 == 0 or end > len(life) - 3:
            expected = model.encode([life[: end + 1]], "next")[0]
            assert np.abs(state.vector - expected).max() < 1e-5, end
            assert np.abs(model.state(life[: end + 1], "next").vector - expected).max() < 1e-5, end
    assert state.kept is not None
    again = replace(state, total=None)  # as a state that was read from a disk
    assert np.abs(model.extend(again, "p01").vector - model.extend(state, "p01").vector).max() < 1e-6


def test_what_a_state_keeps(shop, tmp_path):
    model = made(shop, tmp_path, backbone={"name": "nextitnet", "dilations": [1, 4, 1, 4, 1, 4, 1, 4]})
    state = model.state(EVENTS[:3], "next")
    assert state.kept.shape == (1, 120, 8)  # the sum of (k - 1) d
    assert state.nbytes == 120 * 8 * 4 + 3 * 4 + (8 * 8 if model.config.model.pooling != "last" else 0)
    assert made(shop, tmp_path / "other", backbone="sasrec").state(EVENTS[:3]).kept is None


def test_unknown_events_and_other_models(shop, model, tmp_path):
    state = model.extend(model.state(["p01", "who"]), "else")
    assert state.unknown == 2
    assert np.allclose(state.vector, model.encode([["p01", "x", "y"]])[0], atol=1e-5)
    with pytest.raises(ConfigError, match="belongs to another model"):
        dist_teracon.from_pretrained(shop.run, stage=1).extend(state, "p01")
    with pytest.raises(DataError, match="expected ids that are texts or whole numbers, got None"):
        model.extend(state, {"time": 1})


@pytest.mark.parametrize("name", ["sinmo", "mtl"])
def test_a_method_with_several_networks(shop, tmp_path, name):
    from shop import make_shop_run

    from dist_teracon.inference.padded import padded_model

    model = dist_teracon.from_pretrained(make_shop_run(shop.dataset, tmp_path / "run", method={"name": name}))
    for task in model.tasks:
        state = model.extend(model.state(["p01", "p02"], task), "p03")
        expected = model.encode([["p01", "p02", "p03"]], task)
        assert np.allclose(state.vector, expected[0], atol=1e-5)
        items = torch.tensor([[model.items.index(item) for item in ("p01", "p02", "p03")]])
        assert np.allclose(padded_model(model, task)(items, torch.tensor([3]))[0], expected, atol=1e-5)
    with pytest.raises(ConfigError, match="has no one network for shared:concat; take a task"):
        model.state(["p01"])


@pytest.mark.parametrize("name", ["piggyback", "conure", "peterrec"])
def test_a_method_that_changes_weights_or_inserts_modules_is_refused(shop, tmp_path, name):
    """Its backbone under masks alone is not what it computes; only `encode` asks the method."""
    from shop import make_shop_run

    from dist_teracon.inference.padded import export_model

    model = dist_teracon.from_pretrained(make_shop_run(shop.dataset, tmp_path / "run", method={"name": name}))
    assert model.encode([["p01", "p02"]], "buys").shape == (1, model.width("buys"))
    with pytest.raises(ConfigError, match=f"state: method '{name}' computes with weights or modules of its own"):
        model.state(["p01"], "buys")
    with pytest.raises(ConfigError, match=f"export-model: method '{name}'"):
        export_model(model, str(tmp_path / "out.pt2"), "buys")
    assert not (tmp_path / "out.pt2").exists()


@pytest.mark.parametrize("task", ["next", "shared"])
def test_events_of_several_users_together(shop, tmp_path, task):
    """Histories of other lengths, one at the limit, one of another kind, and one that was read from no kept inputs."""
    model = made(shop, tmp_path, backbone={"name": "nextitnet", "dilations": [1, 2]}, pooling="concat")
    histories = [EVENTS[:1], EVENTS[3:8], EVENTS[:8], EVENTS[:12], EVENTS[2:5]]
    states = [model.state(history, task) for history in histories]
    assert [state.kept is None for state in states] == [False, False, True, True, False]
    states[4] = model.state(histories[4], "buys")
    added = ["p09", "p11", "who", "p13", "p02"]
    longer = model.extend_each(states, added)
    assert model.last_unknown == 1
    for state, history, item, kind in zip(longer, histories, added, [task] * 4 + ["buys"], strict=True):
        expected = model.encode([[*history, item]], kind)[0]
        assert np.abs(state.vector - expected).max() < 1e-5
        assert np.abs(model.extend(state, "p05").vector - model.encode([[*history, item, "p05"]], kind)[0]).max() < 1e-5
    assert [state.unknown for state in longer] == [0, 0, 1, 0, 0]
    # one state holds no other's memory
    assert longer[0].kept.untyped_storage().nbytes() == longer[0].kept.nbytes


def test_frozen_weights_give_the_same_bits(shop, model):
    """What is kept of weights and plans changes no number, and weights put in their place for a pass are read."""
    from dist_teracon.train.restore import restore_method

    histories = [EVENTS[:length] for length in (8, 3, 8, 1)]
    method, rows = restore_method(shop.run), model.histories(histories).rows
    for rows_of_batch in (rows, rows.between(1, 2), rows.take(np.array([0, 2]))):
        for _ in range(2):
            fresh = method.encode(model._packed(rows_of_batch, method.mask_index("buys")), "buys")
            assert np.array_equal(model.vectors(rows_of_batch, "buys").numpy(), fresh.detach().numpy())
    network = model.method.model()
    double = {name: 2 * value.detach() for name, value in network.backbone.named_parameters()}
    batch = model._packed(rows, 0)
    other = network.encode(batch, None, positions="last", weights=double)
    assert not np.allclose(other.detach().numpy(), network.encode(batch, None, positions="last").detach().numpy())


@pytest.mark.parametrize("change", ["embed", "stepper"])
def test_a_backbone_that_embeds_or_steps_in_its_own_way(shop, tmp_path, monkeypatch, change):
    """What one user's event takes by NumPy is what this program's backbones do; others have their own."""
    model = made(shop, tmp_path, backbone={"name": "nextitnet", "dilations": [1, 2]}, pooling="mean")
    network = model.method.model()

    class Own(type(network.backbone)):
        if change == "embed":

            def embed(self, sequences):
                return 2 * super().embed(sequences)

            def embed_items(self, items_N):
                return 2 * super().embed_items(items_N)

        if change == "stepper":

            def stepper(self, masks_VKC):
                inner = super().stepper(masks_VKC)
                return SimpleNamespace(begin=inner.begin, step=inner.step)

    network.backbone.__class__ = Own
    state = model.state(["p01", "p02"], "next")
    for place, item in enumerate(["p03", "p05", "p07"]):
        state = model.extend(state, item)
        expected = model.encode([["p01", "p02", "p03", "p05", "p07"][: place + 3]], "next")[0]
        np.testing.assert_allclose(state.vector, expected, atol=1e-5)

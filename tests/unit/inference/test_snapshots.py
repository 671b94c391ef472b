"""Snapshots of the users that a server remembers: they come back, and those of another run or damaged ones are refused."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from app_requests import post

import dist_teracon
from dist_teracon.errors import ConfigError
from dist_teracon.inference.serving.app import load_app
from dist_teracon.inference.serving.requests import Limits
from dist_teracon.inference.serving.served import Source


# of histories at the length limit of 8, the second keeps no inputs, as its reach is 19; the first one's is 4
@pytest.mark.parametrize("backbone", ["nextitnet", "nextitnet of reach 19", "sasrec"])
def test_a_snapshot_brings_users_back(shop, tmp_path, backbone, monkeypatch):
    from shop import CONFIG, make_shop_run

    settings = {"nextitnet": {"dilations": [1], "kernel_size": 2}, "sasrec": {"layers": 2}}.get(backbone, {"dilations": [1, 2]})
    named = {"name": backbone.partition(" ")[0], **settings}
    run = make_shop_run(shop.dataset, tmp_path / "run", model={**CONFIG["model"], "backbone": named})
    source, folder = Source("shop", str(run)), tmp_path / "snapshots"

    def start():
        return load_app([source], users=50, limits=Limits(), snapshots=folder)

    first = start()
    histories = {f"u{user}": [f"p{(user * 7 + place) % 24:02d}" for place in range(1 + 2 * user)] for user in range(6)}
    for user, history in histories.items():
        post(first, "/events", user=user, items=history, task="buys")
    post(first, "/events", user="u2", task="shared")
    post(first, "/events", user="u0", items=["nothing known"])
    asyncio.run(first.save())
    post(first, "/events", user="u9", items=["p01"], task="buys")
    asyncio.run(first.close())
    assert asyncio.run(first.handle("POST", "/encode", {}, b"{}")).status == 503
    assert len(list((folder / "shop").glob("states-*"))) == 1  # the older one is gone

    second = start()
    assert [name for name, _ in second.models["shop"].users] == ["u1", "u3", "u4", "u5", "u2", "u0", "u9"]
    model = second.models["shop"].model
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "state", None)  # what was in the snapshot is extended
        for user in ("u1", "u3", "u5", "u2"):
            _, value = post(second, "/events", user=user, items=["p11"], task="buys")
            assert (value["events"], value["began"]) == (len(histories[user]) + 1, False)
            assert np.allclose(value["vector"], model.encode([[*histories[user], "p11"]], "buys")[0], atol=1e-5)
    _, value = post(second, "/events", user="u0", items=["p02"], task="buys")  # its state was of an event before
    assert np.allclose(value["vector"], model.encode([[*histories["u0"], "?", "p02"]], "buys")[0], atol=1e-5)


def test_snapshots_of_another_run_and_damaged_ones_are_refused(shop, tmp_path):
    def start(stage=None):
        return load_app([Source("shop", str(shop.run), stage)], users=5, limits=Limits(), snapshots=tmp_path)

    app = start()
    post(app, "/events", user="u", items=["p01"])
    asyncio.run(app.save())
    with pytest.raises(ConfigError, match=r"snapshot\.json: is the snapshot of another run or stage"):
        start(stage=2)
    # a process that is started again after a switch has the users' histories
    other = load_app([Source("shop", str(shop.run), 2)], users=5, limits=Limits(), snapshots=tmp_path, restarted=True)
    _, value = post(other, "/events", user="u", items=["p02"])
    assert (value["events"], value["began"]) == (2, False)
    assert np.allclose(value["vector"], dist_teracon.from_pretrained(shop.run, stage=2).encode([["p01", "p02"]])[0], atol=1e-5)
    index, (states,) = tmp_path / "shop" / "snapshot.json", (tmp_path / "shop").glob("states-*")
    content = states.read_bytes()
    states.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(dist_teracon.errors.DataError, match="is damaged"):
        start()
    states.unlink()
    with pytest.raises(dist_teracon.errors.DataError, match="is damaged"):
        start()
    states.write_bytes(content)
    assert len(start().models["shop"].users) == 1
    for damaged in (index.read_text()[:-9], "{}", "[]", index.read_text().replace('"count":1', '"cnt":1')):
        index.write_text(damaged)
        with pytest.raises(dist_teracon.errors.DataError, match=r"snapshot\.json"):
            start()

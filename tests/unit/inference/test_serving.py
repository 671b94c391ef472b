"""The server without HTTP: answers equal to the model's own, refusals, batches, remembered users, a model in another's place."""

from __future__ import annotations

import asyncio
import json
import threading

import numpy as np
import pytest
from app_requests import post

import dist_teracon
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.inference.serving import batching
from dist_teracon.inference.serving.app import App
from dist_teracon.inference.serving.batching import Job, run_jobs
from dist_teracon.inference.serving.requests import EventsRequest, Limits, RequestError, parse
from dist_teracon.inference.serving.served import Served, Source
from dist_teracon.inference.serving.users import Users

HISTORIES = [["p01", "p05", "p07"], ["p03"], ["p02", "who", "p04"]]


@pytest.fixture(scope="module")
def served(shop):
    return Served.load(Source("shop", str(shop.run)), Users(100))


@pytest.fixture
def app(served):
    served.users = Users(100)
    return App([served])


def metrics(app):
    lines = asyncio.run(app.handle("GET", "/metrics", {}, b"")).body.decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("asked", [{}, {"task": "buys"}, {"shared": "open"}, {"shared": "concat"}])
def test_vectors_are_those_of_encode(app, model, asked):
    status, value = post(app, "/encode", histories=HISTORIES, **asked)
    assert status == 200
    assert np.array_equal(
        np.array(value["vectors"], dtype=np.float32), model.encode(HISTORIES, asked.get("task", "shared"), shared=asked.get("shared"))
    )
    assert value["unknown"] == 1
    assert (value["model"], value["fingerprint"]) == ("shop", model.fingerprint)


@pytest.mark.parametrize(
    "asked",
    [
        {"task": "buys"},
        {"task": "buys", "top": 3, "exclude_seen": False, "normalise": True},
        {"task": "next", "candidates": ["p02", "p03", "p11"], "top": 2},
        {"task": "club", "normalise": True},
    ],
)
def test_predictions_are_those_of_predict(app, model, asked):
    status, value = post(app, "/predict", histories=HISTORIES, **asked)
    assert status == 200
    expected = model.predict(HISTORIES, **asked)
    assert value["labels"] == expected.labels
    assert [list(zip(*pair, strict=True)) for pair in zip(value["labels"], value["scores"], strict=True)] == list(expected)
    assert value["fingerprint"] == model.fingerprint


def test_requests_that_wait_are_computed_together_and_each_has_its_own_answer(app, model, served, monkeypatch):
    """While one request holds the model, others of several kinds gather; a bad one among them fails alone."""
    held, sizes, encode = threading.Event(), [], Served.encode

    def counting(self, requests):
        held.wait(30)
        sizes.append(len(requests))
        return encode(self, requests)

    monkeypatch.setattr(Served, "encode", counting)

    async def ask(**fields):
        return await app.handle("POST", fields.pop("path", "/encode"), {}, json.dumps(fields).encode())

    async def run():
        first = asyncio.create_task(ask(histories=[["p09"]]))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(ask(histories=[history])) for history in HISTORIES]
        others += [asyncio.create_task(ask(histories=[["p01"]], task="buys")), asyncio.create_task(ask(histories=[["p01"]], task="clubs"))]
        others.append(asyncio.create_task(ask(path="/predict", histories=[["p01"]], task="buys")))
        await asyncio.sleep(0.05)
        held.set()
        return await asyncio.gather(first, *others)

    answers = asyncio.run(run())
    assert sizes == [1, 3, 1, 1]
    values = [json.loads(answer.body) for answer in answers]
    assert [answer.status for answer in answers] == [200] * 5 + [400, 200]
    assert np.allclose([value["vectors"][0] for value in values[1:4]], model.encode(HISTORIES), atol=1e-6)
    assert [value["unknown"] for value in values[1:4]] == [0, 0, 1]
    assert "did you mean 'club'" in values[5]["error"]
    assert values[6]["labels"] == model.predict([["p01"]], "buys").labels
    assert metrics(app)["dist_teracon_batch_rows_count"] == "2.0"
    assert metrics(app)["dist_teracon_batch_rows_sum"] == "7.0"


def test_short_batches_are_computed_in_the_loops_thread(served, monkeypatch):
    """Once it is known that they are short; a longer one, one of another size or task, and one beside a snapshot have the other thread."""
    app, threads, encode = App([served]), [], Served.encode

    def noting(self, requests):
        threads.append(threading.current_thread().name.partition("_")[0])
        return encode(self, requests)

    monkeypatch.setattr(Served, "encode", noting)
    monkeypatch.setattr(batching, "_SHORT_S", 60.0)

    async def ask(**fields):
        answer = await app.handle("POST", "/encode", {}, json.dumps(fields).encode())
        return json.loads(answer.body).get("vectors", answer.status)

    async def run():
        first, again = [await ask(histories=[["p01", "p05"]]) for _ in range(2)]
        assert first == again
        await ask(histories=[["p01"] * 5])
        await ask(histories=[["p01", "p05"]], task="buys")
        assert [await ask(histories=[["p01", "p05"]], task="clubs") for _ in range(2)] == [400, 400]
        held = threading.Event()
        saving = asyncio.create_task(app._batcher.between_batches(held.wait))
        await asyncio.sleep(0.01)
        beside = asyncio.create_task(ask(histories=[["p01", "p05"]]))
        await asyncio.sleep(0.01)
        held.set()
        await saving
        assert await beside == first
        monkeypatch.setattr(batching, "_SHORT_S", 0.0)
        assert await ask(histories=[["p01", "p05"]]) == first

    asyncio.run(run())
    assert threads == ["model", "MainThread", *["model"] * 6]


def test_too_many_that_wait_are_refused(served, monkeypatch):
    app, held, encode = App([served], limits=Limits(waiting=2)), threading.Event(), Served.encode

    def slow(self, requests):
        held.wait(30)
        return encode(self, requests)

    monkeypatch.setattr(Served, "encode", slow)

    async def run():
        asked = [asyncio.create_task(app.handle("POST", "/encode", {}, b'{"histories": [["p01"]]}'))]
        await asyncio.sleep(0.05)
        asked += [asyncio.create_task(app.handle("POST", "/encode", {}, b'{"histories": [["p01"]]}')) for _ in range(3)]
        await asyncio.sleep(0.05)
        held.set()
        return await asyncio.gather(*asked)

    answers = asyncio.run(run())
    assert [answer.status for answer in answers] == [200, 200, 200, 503]
    assert answers[-1].headers["retry-after"] == "1"


def test_events_one_at_a_time_have_the_vector_of_the_whole_history(app, model):
    status, value = post(app, "/events", user="u1", history=["p01", "p05"], items=["p07"], task="buys")
    assert status == 200
    assert (value["events"], value["began"], value["unknown"]) == (3, True, 0)
    history = ["p01", "p05", "p07"]
    for place in range(12):  # past the length limit of 8
        item = f"p{(5 * place) % 24:02d}" if place != 4 else "never seen"
        history.append(item)
        status, value = post(app, "/events", user="u1", items=[item], task="buys")
        assert (value["events"], value["began"], value["unknown"]) == (len(history), False, int(place == 4))
        assert np.allclose(value["vector"], model.encode([history], "buys")[0], atol=1e-5)
    # events are the user's, not a task's: another kind of vector has all of them, and the first one catches up
    assert np.allclose(post(app, "/events", user="u1", items=["p02"])[1]["vector"], model.encode([[*history, "p02"]])[0], atol=1e-5)
    _, value = post(app, "/events", user="u1", task="buys")
    assert value["events"] == len(history) + 1
    assert np.allclose(value["vector"], model.encode([[*history, "p02"]], "buys")[0], atol=1e-5)


def test_a_state_is_extended_and_not_computed_anew(app, monkeypatch):
    post(app, "/events", user=7, items=["p01", "p02"])
    monkeypatch.setattr(type(app.models["shop"].model), "state", None)
    status, value = post(app, "/events", user="7", items=["p03"])
    assert (status, value["events"], value["user"]) == (200, 3, "7")


def test_events_of_a_batch(served, model):
    """Users together, one of them twice, one that is not kept, and a request of another task."""
    app = App([served])
    post(app, "/events", user="a", items=["p01", "p02"], task="buys")
    bodies = [
        {"user": "a", "items": ["p03"], "task": "buys"},
        {"user": "b", "items": ["p04"], "task": "buys"},
        {"user": "nobody", "task": "buys"},
        {"user": "a", "items": ["p05", "p06"], "task": "buys"},
        {"user": "b", "items": ["p07"], "task": "next"},
    ]

    jobs = [Job(served, parse("/events", json.dumps(body).encode(), Limits())) for body in bodies]
    answers = run_jobs(jobs)
    assert isinstance(answers[2], RequestError)
    assert answers[2].status == 404
    expected = [["p01", "p02", "p03"], ["p04"], None, ["p01", "p02", "p03", "p05", "p06"], ["p04", "p07"]]
    for answer, history, body in zip(answers, expected, bodies, strict=True):
        if history is not None:
            assert (answer["user"], answer["events"], answer["began"]) == (body["user"], len(history), history == ["p04"])
            assert np.allclose(answer["vector"], model.encode([history], body["task"])[0], atol=1e-5)
    # an event that cannot be read fails its own request alone, and adds nothing
    wrong = Job(served, EventsRequest(None, "b", ({"item": None},), task="next"))
    good, bad = run_jobs([Job(served, EventsRequest(None, "a", ("p08",), task="next")), wrong])
    assert isinstance(bad, DataError)
    assert (good["events"], served.users.get("a").count, served.users.get("b").count) == (6, 6, 2)


def test_the_least_recently_used_user_makes_place(served):
    served.users = Users(2)
    app = App([served])
    for user in ("a", "b", "a", "c"):
        post(app, "/events", user=user, items=["p01"])
    assert [name for name, _ in served.users] == ["a", "c"]
    assert metrics(app)['dist_teracon_users{model="shop"}'] == "2.0"
    assert metrics(app)['dist_teracon_evicted_users{model="shop"}'] == "1.0"
    assert post(app, "/events", user="b", items=["p02"])[1]["began"] is True
    status, value = post(app, "/events", user="a")
    assert (status, "nothing of it is kept" in value["error"]) == (404, True)


def test_a_failed_request_leaves_the_user_as_it_was(app):
    post(app, "/events", user="u", items=["p01"])
    assert post(app, "/events", user="u", items=["p02"], task="nxt")[0] == 400
    assert post(app, "/events", user="u")[1]["events"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/encode", b"{", 400, "expected JSON"),
        ("/encode", b"\xff", 400, "expected JSON"),
        ("/encode", b"[" * 100_000, 400, "nested too deeply"),
        ("/encode", b"[]", 400, "expected a JSON object, got a list"),
        ("/encode", b"{}", 400, "histories: expected a list"),
        ("/encode", b'{"histories": []}', 400, "histories: expected a list"),
        ("/encode", b'{"histories": ["p01"]}', 400, "histories[0]: expected a list of ids, got a text"),
        ("/encode", b'{"histories": [["p01"], []]}', 400, "histories[1]: is empty"),
        ("/encode", b'{"histories": [["p01", null]]}', 400, "histories[0][1]: expected a text or a whole number, got None"),
        ("/encode", b'{"histories": [[1.5]]}', 400, "got 1.5"),
        ("/encode", b'{"histories": [[true]]}', 400, "got True"),
        ("/encode", b'{"histories": [[NaN]]}', 400, "NaN is no JSON"),
        ("/encode", b'{"histories": [[1' + b"0" * 5000 + b"]]}", 400, "expected JSON"),
        ("/encode", b'{"histories": [["\\ud800"]]}', 400, "histories[0][0]: expected a text"),
        ("/encode", b'{"histories": [["p01"]], "tsk": "buys"}', 400, "did you mean 'task'"),
        ("/encode", b'{"histories": [["p01"]], "task": "bys"}', 400, "did you mean 'buys'"),
        ("/encode", b'{"histories": [["p01"]], "task": 3}', 400, "task: expected a text, got a number"),
        ("/encode", b'{"histories": [["p01"]], "shared": "all"}', 400, "expected mean, open or concat"),
        ("/encode", b'{"histories": [["p01"]], "model": "shp"}', 404, "did you mean 'shop'"),
        ("/encode", json.dumps({"histories": [["p01"]] * 513}).encode(), 413, "at most 512"),
        ("/encode", b" " * (1 << 20) + b"{}", 413, "larger than 1048576 bytes"),
        ("/predict", b'{"histories": [["p01"]]}', 400, "task: is missing"),
        ("/predict", b'{"histories": [["p01"]], "task": "buys", "top": 0}', 400, "top: expected a whole number from 1 to 1000, got 0"),
        ("/predict", b'{"histories": [["p01"]], "task": "buys", "top": true}', 400, "got True"),
        ("/predict", b'{"histories": [["p01"]], "task": "club", "exclude_seen": true}', 400, "not known to be items"),
        ("/predict", b'{"histories": [["p01"]], "task": "buys", "candidates": ["nothing"]}', 400, "none of 1 ids is a label"),
        ("/predict", b'{"histories": [["p01"]], "task": "buys", "normalise": 1}', 400, "expected true or false"),
        ("/events", b'{"items": ["p01"]}', 400, "user: is missing"),
        ("/events", b'{"user": "new"}', 404, "send its history"),
        ("/reload", b'{"stage": 9}', 409, "the model that was there goes on"),
    ],
)  # fmt: skip
def test_what_is_refused(app, path, body, status, text):
    answer = asyncio.run(app.handle("POST", path, {}, body))
    assert answer.status == status
    assert text in json.loads(answer.body)["error"]
    assert metrics(app)[f'dist_teracon_requests_total{{path="{path}",status="{status}"}}'] == "1.0"
    assert asyncio.run(app.handle("POST", "/encode", {}, b'{"histories": [["p01"]]}')).status == 200


def test_paths_methods_and_lengths_are_refused_before_the_body_is_read(app):
    assert app.refusal("POST", "/encode", {"content-length": "1048576"}) is None
    assert app.refusal("POST", "/encode", {"content-length": "1048577"}).status == 413
    assert app.refusal("POST", "/encode", {"content-length": str(10 << 20)}).status == 413
    assert app.refusal("POST", "/encode", {"content-length": "9" * 5000}).status == 413
    assert app.refusal("POST", "/enocde", {}).status == 404
    answer = app.refusal("GET", "/encode", {})
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert metrics(app)['dist_teracon_requests_total{path="other",status="404"}'] == "1.0"


def test_an_error_inside_is_a_500_without_its_text(app, monkeypatch, capsys):
    def broken(self, requests):
        raise ValueError("a secret of the inside")

    monkeypatch.setattr(Served, "encode", broken)
    status, value = post(app, "/encode", histories=[["p01"]])
    assert status == 500
    assert "secret" not in value["error"]
    assert "a secret of the inside" in capsys.readouterr().err


def test_a_token(served):
    app = App([served], token="correct-horse-battery")
    body = {"histories": [["p01"]]}
    for header in ("", "Bearer", "Bearer correct-horse-batter", "Basic correct-horse-battery", "Bearer \udcff", "correct-horse-battery"):
        assert post(app, "/encode", {"authorization": header}, **body)[0] == 401
    assert post(app, "/encode", {"authorization": "Bearer correct-horse-battery"}, **body)[0] == 200
    assert post(app, "/reload")[0] == 401
    assert asyncio.run(app.handle("GET", "/metrics", {}, b"")).status == 401
    assert asyncio.run(app.handle("GET", "/health", {}, b"")).status == 200


def test_several_stages_side_by_side(shop, served):
    two = Served.load(Source.parse(f"two={shop.run}@2"), Users(9))
    app = App([served, two])
    assert post(app, "/encode", histories=[["p01"]])[1]["error"] == "model: is missing; expected one of shop, two"
    _, value = post(app, "/encode", model="two", histories=HISTORIES)
    older = dist_teracon.from_pretrained(shop.run, stage=2)
    assert value["fingerprint"] == older.fingerprint != served.model.fingerprint
    assert np.array_equal(np.array(value["vectors"], dtype=np.float32), older.encode(HISTORIES))
    health = json.loads(asyncio.run(app.handle("GET", "/health", {}, b"")).body)
    assert {name: about["stage"] for name, about in health["models"].items()} == {"shop": 3, "two": 2}
    assert health["models"]["two"]["tasks"] == ["next", "buys"]


def test_a_switch_drops_no_request_and_no_user(shop, served, monkeypatch):
    """Requests that came before end with the old model, those after it are the new one's, and users have all their events."""
    app, held, encode = App([Served(served.source, served.model, Users(9))]), threading.Event(), Served.encode
    old, new = served.model, dist_teracon.from_pretrained(shop.run, stage=2)
    post(app, "/events", user="u", items=["p01", "p02"])

    def slow(self, requests):
        held.wait(30)
        return encode(self, requests)

    async def run():
        with monkeypatch.context() as patch:
            patch.setattr(Served, "encode", slow)
            before = [asyncio.create_task(app.handle("POST", "/encode", {}, b'{"histories": [["p05"]]}')) for _ in range(5)]
            event = asyncio.create_task(app.handle("POST", "/events", {}, b'{"user": "u", "items": ["p03"]}'))
            await asyncio.sleep(0.05)
            switched = await app.handle("POST", "/reload", {}, b'{"stage": 2}')
            after = asyncio.create_task(app.handle("POST", "/encode", {}, b'{"histories": [["p05"]]}'))
            await asyncio.sleep(0.05)
            held.set()
            return [json.loads(answer.body) for answer in (switched, await event, await after, *[await one for one in before])]

    switched, event, after, *before = asyncio.run(run())
    assert (switched["before"], switched["fingerprint"], switched["stage"]) == (old.fingerprint, new.fingerprint, 2)
    assert {value["fingerprint"] for value in before} == {old.fingerprint}
    assert np.allclose([value["vectors"][0] for value in before], old.encode([["p05"]]), atol=1e-6)
    assert after["fingerprint"] == new.fingerprint
    assert np.allclose(after["vectors"], new.encode([["p05"]]), atol=1e-6)
    assert (event["fingerprint"], event["events"]) == (old.fingerprint, 3)
    _, value = post(app, "/events", user="u", items=["p04"])
    assert (value["fingerprint"], value["events"], value["began"]) == (new.fingerprint, 4, False)
    assert np.allclose(value["vector"], new.encode([["p01", "p02", "p03", "p04"]])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/shop", Source("default", "runs/shop")),
        ("shop=runs/shop", Source("shop", "runs/shop")),
        ("new=s3://bucket/a=b@3", Source("new", "s3://bucket/a=b", 3)),
        ("s3://me@store/run", Source("default", "s3://me@store/run")),
        ("runs/lr=0.1/shop@2", Source("default", "runs/lr=0.1/shop", 2)),
    ],
)
def test_names_runs_and_stages(text, expected):
    assert Source.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"), [("a b=run", "expected a name"), ("a=", "run is missing"), ("a=run@0", "counted from 1"), ("..=run", "name")]
)
def test_names_that_are_none(text, message):
    with pytest.raises(ConfigError, match=message):
        Source.parse(text)

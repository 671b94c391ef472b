"""`item-vectors`: vectors of texts equal to the encoder's own, Korean ones too; what is left out, refused, and gone on with."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from dist_teracon.cli import main
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.item_vectors_file import read_item_vectors
from dist_teracon.errors import ConfigError, DataError
from dist_teracon.inference import item_vectors
from dist_teracon.inference.item_vectors import read_texts, write_item_vectors
from dist_teracon.inference.text_encoder import TextEncoder

pytest.importorskip("transformers")

TEXTS = {"p01": "빨간 운동화", "p02": "파란 가방", "p03": "Red shoes", "p04": "빨간 신발 bag", "p05": "가방"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from tiny_encoder import write_tiny_encoder

    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


def write_items(path, texts=TEXTS, column="text"):
    path.write_text(f"item,{column}\n" + "".join(f"{item},{text}\n" for item, text in texts.items()), encoding="utf-8")
    return str(path)


def by_hand(folder, text, pool="mean"):
    """The encoder's own numbers of one text, without padding."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True, max_length=10)
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder).eval()(**tokens)
    return (found.last_hidden_state[0, 1:-1].mean(0) if pool == "mean" else found.pooler_output[0]).numpy()


def read(out):
    table = pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type)
    return dict(zip(table["item"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32), strict=True))


def test_sub_tokens_of_korean_are_what_is_averaged(encoder):
    tokenizer = TextEncoder(str(encoder))._tokenizer
    assert tokenizer.tokenize("빨간 운동화") == ["빨간", "운동", "##화"]
    assert tokenizer.tokenize("Red shoes") == ["red", "shoe", "##s"]


@pytest.mark.parametrize("pool", ["mean", "encoder"])
def test_vectors_are_the_encoders_own(encoder, tmp_path, pool, capsys, monkeypatch):
    monkeypatch.setattr(item_vectors, "ITEMS_A_PART", 2)
    out = tmp_path / "out"
    assert (
        main(["item-vectors", write_items(tmp_path / "items.csv"), str(out), "--encoder", str(encoder), "--pool", pool, "--batch", "2"])
        == 0
    )
    assert "5 items × 12, from tiny-bert" in capsys.readouterr().out
    found = read(out)
    assert list(found) == list(TEXTS)
    for item, text in TEXTS.items():
        np.testing.assert_allclose(found[item], by_hand(encoder, text, pool), atol=1e-5)
    assert np.abs(found["p01"] - found["p02"]).max() > 0.1


@pytest.mark.parametrize("pool", ["mean", "encoder"])
def test_a_tokenizer_that_fills_up_at_the_left_gives_the_same_vectors(encoder, tmp_path, pool):
    folder = tmp_path / "left"
    shutil.copytree(encoder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    vectors, has, _ = TextEncoder(str(folder), pool=pool).encode(["red", "red shoe bag red"], batch=2)
    assert has.all()
    for text, vector in zip(("red", "red shoe bag red"), vectors, strict=True):
        np.testing.assert_allclose(vector, by_hand(encoder, text, pool), atol=1e-5)


def test_they_are_read_as_vectors_of_a_data_sets_items(encoder, shop, tmp_path):
    texts = read_texts(write_items(tmp_path / "items.csv", {**TEXTS, "p99": "bag"}))
    manifest = write_item_vectors(texts, TextEncoder(str(encoder)), str(tmp_path / "out"))
    assert manifest["items"] == 6
    given = read_item_vectors(str(tmp_path / "out"), Dataset(shop.dataset))
    names = Dataset(shop.dataset).vocabulary("items")["item"].to_pylist()
    found = read(tmp_path / "out")
    assert (sorted(names[item] for item in given.items), given.unknown) == (sorted(TEXTS), 1)
    for item, vector in zip(given.items, given.vectors, strict=True):
        np.testing.assert_array_equal(vector, found[names[item]])


def test_a_part_that_was_damaged_is_refused(encoder, shop, tmp_path):
    write_item_vectors(read_texts(write_items(tmp_path / "items.csv", TEXTS)), TextEncoder(str(encoder)), str(tmp_path / "out"))
    part = next((tmp_path / "out").glob("*.parquet"))
    table = pq.read_table(part)
    pq.write_table(table.slice(1), part)  # whole for Parquet, yet not what was written
    with pytest.raises(DataError, match=rf"{part.name}: was damaged since it was written"):
        read_item_vectors(str(tmp_path / "out"), Dataset(shop.dataset))


def test_a_missing_table_of_texts_is_called_a_file(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file or folder"):
        read_texts(str(tmp_path / "nowhere.csv"))


def test_what_is_left_out_is_counted(encoder, tmp_path, capsys):
    path = tmp_path / "items.csv"
    path.write_text(
        "id,name,more\n1,빨간,\n2,,\n1,가방,\n3,  ,bag\n4,\x01,\n5,red red red red red red red red red red red,\n", encoding="utf-8"
    )
    assert (
        main(
            [
                "item-vectors",
                str(path),
                str(tmp_path / "out"),
                "--encoder",
                str(encoder),
                "--item",
                "id",
                "--text",
                "name",
                "--text",
                "more",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    found = read(tmp_path / "out")
    assert list(found) == ["1", "3", "5"]
    np.testing.assert_allclose(found["1"], by_hand(encoder, "빨간"), atol=1e-5)
    np.testing.assert_allclose(found["5"], by_hand(encoder, "red " * 8), atol=1e-5)
    manifest = json.loads((tmp_path / "out" / "item-vectors.json").read_text())
    assert (manifest["items"], manifest["without_text"], manifest["repeated"], manifest["cut"]) == (3, 2, 1, 1)
    assert "2 items have no text" in said
    assert "1 further rows" in said
    assert "1 texts reach 10 tokens" in said


def test_a_stopped_job_goes_on_and_other_settings_are_refused(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(item_vectors, "ITEMS_A_PART", 2)
    items, whole, out = write_items(tmp_path / "items.csv"), tmp_path / "whole", tmp_path / "out"
    assert main(["item-vectors", items, str(whole), "--encoder", str(encoder)]) == 0
    encode, calls = TextEncoder.encode, []

    def failing(self, texts, *, batch):
        calls.append(list(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, texts, batch=batch)

    monkeypatch.setattr(TextEncoder, "encode", failing)
    assert main(["item-vectors", items, str(out), "--encoder", str(encoder)]) == 130
    assert not (out / "item-vectors.json").exists()
    with pytest.raises(DataError, match=r"is a folder without item-vectors\.json"):
        read_item_vectors(str(out), None)
    assert main(["item-vectors", items, str(out), "--encoder", str(encoder)]) == 0
    assert calls == [["빨간 운동화", "파란 가방"], ["Red shoes", "빨간 신발 bag"], ["Red shoes", "빨간 신발 bag"], ["가방"]]
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert main(["item-vectors", items, str(out), "--encoder", str(encoder), "--pool", "encoder"]) == 2
    assert 'pool was "mean" and is now "encoder"' in capsys.readouterr().err
    assert len(calls) == 4


def test_folders_that_are_no_safe_encoder_are_refused(encoder, tmp_path):

    from tiny_encoder import write_tiny_encoder

    def refused(folder, said, **options):
        with pytest.raises(ConfigError, match=said):
            TextEncoder(str(folder), **options)

    refused("skt/kobert-base-v1", "nothing is downloaded")
    refused("s3://bucket/encoder", "a folder on this machine's disk")
    refused(write_tiny_encoder(tmp_path / "plain", pooler=False), "no pooled output", pool="encoder")
    lacking = tmp_path / "lacking"
    shutil.copytree(encoder, lacking)
    tensors = load_file(lacking / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if "layer.1.output" not in name}, lacking / "model.safetensors", {"format": "pt"}
    )
    refused(lacking, "its weights lack .* of the encoder's tensors")
    pickled = tmp_path / "pickled"
    shutil.copytree(encoder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, "has no model.safetensors; it holds pytorch_model.bin, which are not read, as they may run code")
    foreign = tmp_path / "foreign"
    shutil.copytree(encoder, foreign)
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "my-own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused(foreign, "cannot be loaded .*code that a folder brings is never run")
    assert not (tmp_path / "ran").exists()
    damaged = tmp_path / "damaged"
    shutil.copytree(encoder, damaged)
    (damaged / "model.safetensors").write_bytes(b"\x00" * 64)
    refused(damaged, "cannot be loaded")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["items.csv", "out", "--text", "titel"], "has no column 'titel'; did you mean 'title'"),
        (["items.csv", "out", "--item", "no"], "has no column 'no'.*name it with --item"),
        (["none.csv", "out"], "none.csv: no such"),
        (["items.csv", "items.csv", "--text", "title"], "is a file; expected a new folder"),
        (["items.csv", "out", "--text", "title", "--batch", "0"], "--batch: expected a whole number of 1 or more, got '0'"),
        (["items.csv", "out", "--text", "title", "--max-length", "0"], "--max-length: expected a whole number of 1 or more, got '0'"),
        (["items.csv", "out", "--text", "title", "--max-length", "2"], "--max-length: expected more than the 2 special tokens"),
        (["items.csv", "out", "--text", "title", "--device", "nowhere"], "device 'nowhere': cannot be used here"),
    ],
)
def test_mistakes_have_one_message(encoder, tmp_path, monkeypatch, capsys, arguments, said):
    import re

    monkeypatch.chdir(tmp_path)
    write_items(tmp_path / "items.csv", column="title")
    try:
        status = main(["item-vectors", *arguments, "--encoder", str(encoder)])
    except SystemExit as ended:  # of an argument that is none
        status = ended.code
    assert status == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert error.count("error:") == 1
    assert not (tmp_path / "out").exists()

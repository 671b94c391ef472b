"""A Hugging Face text encoder from a folder on disk: texts to vectors. Weights are safetensors alone, and no code of the folder runs.

Legend: n texts, L tokens, D numbers of a vector.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_teracon import io
from dist_teracon.errors import ConfigError
from dist_teracon.inference.device import usable_device

Pool = Literal["mean", "encoder"]
POOLS: tuple[Pool, ...] = ("mean", "encoder")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class TextEncoder:
    """An encoder and its tokenizer.

    Args:
        folder: As `save_pretrained` of encoder and tokenizer write it: `config.json`, `model.safetensors`, and the tokenizer's files.
        pool: What a text's vector is: `mean` of its sub-tokens' last hidden states, or the `encoder`'s own pooled output.
        max_length: Tokens of a text that are read; None for as many as encoder and tokenizer allow.
        device: Where it computes.

    Raises:
        ConfigError: transformers is not installed, the folder is no encoder, its weights are no safetensors, it needs code of its own,
            it has no pooled output, or `max_length` leaves no room for a text.
    """

    def __init__(self, folder: str, *, pool: Pool = "mean", max_length: int | None = None, device: str = "cpu") -> None:
        if pool not in POOLS:
            raise ConfigError(f"--pool: expected {' or '.join(POOLS)}, got '{pool}'")
        if max_length is not None and max_length < 1:
            raise ConfigError(f"--max-length: expected 1 or more, got {max_length}")
        if importlib.util.find_spec("transformers") is None:
            raise ConfigError("--encoder: needs transformers, which is not installed: pip install 'dist-teracon[text]'")
        self.folder, self.pool = _checked(folder), pool
        # weights that a file does not hold are drawn by transformers; of a pooled output that nobody reads they do no harm
        self._tokenizer, self._model, drawn = _load(self.folder)
        if lost := [name for name in drawn if not name.startswith("pooler.")]:
            raise ConfigError(f"--encoder {folder}: its weights lack {len(lost)} of the encoder's tensors ({', '.join(lost[:3])}, …)")
        if self._tokenizer.pad_token is None:
            raise ConfigError(f"--encoder {folder}: its tokenizer has no token to fill up with; expected an encoder, as of BERT's kind")
        # at the left, positions would be counted from the filling, and the pooled output would be the filling's
        self._tokenizer.padding_side = "right"
        self._device = usable_device(device)
        self._model.to(self._device).eval()
        if pool == "encoder" and (drawn or self._outputs([""])[1] is None):
            raise ConfigError(f"--pool encoder: {folder}: this encoder has no pooled output; take --pool mean")
        self.max_length = _longest(self._tokenizer, self._model, max_length)
        special = int(self._tokenizer.num_special_tokens_to_add())
        if self.max_length <= special:
            raise ConfigError(
                f"--max-length: expected more than the {special} special tokens that {folder} adds to each text, got {self.max_length}"
            )

    @property
    def width(self) -> int:
        """Numbers D of a vector."""
        return int(self._model.config.hidden_size)

    def fingerprint(self) -> str:
        """Return the SHA-256 that names configuration, weights and tokenizer."""
        digest = hashlib.sha256()
        for path in sorted(
            entry for entry in self.folder.iterdir() if entry.is_file() and entry.suffix in (".json", ".safetensors", ".txt", ".model")
        ):
            digest.update(f"{path.name} {io.sha256(str(path))}\n".encode())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, batch: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
        """Return the texts' vectors float32 [n, D], which of them have one, and how many texts were cut.

        A text has none where it has no token of its own. Texts of similar length are encoded together, on which last digits depend.
        """
        encoded = self._tokenizer(list(texts), add_special_tokens=True, truncation=True, max_length=self.max_length,
                                  return_special_tokens_mask=True)  # fmt: skip
        lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
        own = [np.flatnonzero(np.asarray(mask) == 0) for mask in encoded["special_tokens_mask"]]
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        order = np.argsort(lengths, kind="stable")
        for first in range(0, len(order), batch):
            rows = order[first : first + batch].tolist()
            padded = self._tokenizer.pad({"input_ids": [encoded["input_ids"][row] for row in rows]}, return_tensors="pt").to(self._device)
            hidden_nLD, pooled = self._forward(padded)
            if self.pool == "encoder":
                assert pooled is not None
                vectors[rows] = pooled.float().cpu().numpy()
                continue
            for place, row in enumerate(rows):
                if own[row].size:
                    tokens = hidden_nLD[place, torch.from_numpy(own[row]).to(self._device)]
                    vectors[row] = tokens.float().mean(dim=0).cpu().numpy()
        cut = sum(length >= self.max_length for length in lengths.tolist())
        return vectors, np.array([mask.size > 0 for mask in own], dtype=bool), cut

    def _outputs(self, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return self._forward(self._tokenizer(texts, return_tensors="pt").to(self._device))

    def _forward(self, inputs: Any) -> tuple[Tensor, Tensor | None]:
        found = self._model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return found.last_hidden_state, getattr(found, "pooler_output", None)


def _checked(folder: str) -> Path:
    """Return the folder, after a look at what lies in it; what is not there is never looked for elsewhere."""
    if not io.is_local(folder):
        raise ConfigError(f"--encoder {folder}: expected a folder on this machine's disk")
    path = io.local_path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"--encoder {folder}: expected a folder on disk with config.json, model.safetensors and a tokenizer, as `save_pretrained` "
            "writes them; nothing is downloaded"
        )
    if not any((path / name).is_file() for name in _WEIGHTS):
        others = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))
        held = f"; it holds {', '.join(others)}, which are not read, as they may run code: write them anew as safetensors" if others else ""
        raise ConfigError(f"--encoder {folder}: has no model.safetensors{held}")
    return path


def _load(path: Path) -> tuple[Any, Any, list[str]]:
    """Return tokenizer, encoder, and the names of its tensors that the weights do not have."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path), **safe)
        model, found = transformers.AutoModel.from_pretrained(
            str(path), use_safetensors=True, dtype=torch.float32, output_loading_info=True, **safe
        )
    except Exception as error:  # of many kinds: a damaged file, an unknown architecture, a tokenizer that needs a package or code
        lines = str(error).strip().splitlines()
        said = lines[0][:300] if lines else type(error).__name__
        raise ConfigError(f"--encoder {path}: cannot be loaded ({said}); code that a folder brings is never run") from None
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(
            f"--encoder {path}: is an encoder with a decoder ({model.config.model_type}); expected an encoder, as of BERT's kind"
        )
    return tokenizer, model, sorted([*found["missing_keys"], *(str(key) for key in found["mismatched_keys"])])


def _longest(tokenizer: Any, model: Any, wanted: int | None) -> int:
    """Return how many tokens of a text are read, special ones included."""
    allowed = [getattr(model.config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None)]
    # RoBERTa's kind counts positions from behind that of padding
    known = [int(value) for value in allowed if value is not None and 0 < value < 1 << 20]
    longest = min(known, default=512)
    if getattr(model.config, "model_type", "") in ("roberta", "xlm-roberta", "camembert") and known and longest == known[0]:
        longest -= int(model.config.pad_token_id or 0) + 1
    return longest if wanted is None else min(wanted, longest)

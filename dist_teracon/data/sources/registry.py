"""Readers of raw formats, by name: a new source is one file here and one line below."""

from __future__ import annotations

from dist_teracon.data.sources import events, movielens, recbole, sequence_csv, tenrec
from dist_teracon.data.sources.base import Adapter

ADAPTERS: dict[str, Adapter] = {
    "recbole": recbole.ADAPTER,
    "movielens": movielens.ADAPTER,
    "events": events.ADAPTER,
    "sequence-csv": sequence_csv.ADAPTER,
    "ttl": sequence_csv.TTL,
    "tenrec": tenrec.ADAPTER,
}

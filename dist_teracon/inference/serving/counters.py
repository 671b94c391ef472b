"""What `/metrics` gives: counters and distributions of one server, as Prometheus reads them."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Counters:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry, "namespace": "dist_teracon"}
        self.requests = Counter("requests", "Requests answered.", ["path", "status"], **own)
        self.seconds = Histogram("request_seconds", "Time from a request's last byte to its answer.", ["path"], buckets=_SECONDS, **own)
        self.batch_rows = Histogram("batch_rows", "Users computed together.", buckets=_ROWS, **own)
        self.unknown = Counter("unknown_events", "Events of items that the model does not know.", ["model"], **own)
        self.reloads = Counter("reloads", "Times that a model was loaded again.", ["model"], **own)
        self.waiting = Gauge("waiting_requests", "Requests that wait for the model.", **own)
        self.users = Gauge("users", "Users that are remembered.", ["model"], **own)
        self.evicted = Gauge("evicted_users", "Users that had to make place since the start.", ["model"], **own)
        self.models = Gauge("model", "1 for each model that is served.", ["model", "fingerprint", "stage"], **own)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)

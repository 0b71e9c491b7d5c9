"""Counters and times of a server, as Prometheus reads them, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What is counted.

    Args:
        gauges: name -> (what it is, its value now), read when somebody asks.
    """

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self.registry = CollectorRegistry()
        more: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("archport_requests", "Requests.", ["path", "status"], **more)
        self.rejected = Counter("archport_rejected", "Requests refused, by the code of why.", ["code"], **more)
        self.tokens = Counter("archport_tokens", "Tokens computed for requests.", ["model"], **more)
        self.generated = Counter("archport_generated_tokens", "Tokens generated.", ["model"], **more)
        self.truncated = Counter("archport_truncated_inputs", "Inputs that were cut.", ["model"], **more)
        self.request_seconds = Histogram(
            "archport_request_seconds", "From a request's head to its answer.", ["path"], buckets=_SECONDS, **more
        )
        self.reading_seconds = Histogram(
            "archport_tokenize_seconds", "Reading the texts of a request.", buckets=_SECONDS, **more
        )
        self.queue_seconds = Histogram("archport_queue_seconds", "Waiting for the device.", buckets=_SECONDS, **more)
        self.device_seconds = Histogram(
            "archport_inference_seconds", "From a request's first row to its last.", buckets=_SECONDS, **more
        )
        self.first_token_seconds = Histogram(
            "archport_first_token_seconds", "From a request to its first token.", buckets=_SECONDS, **more
        )
        self.windows = Counter("archport_windows", "What the device ran, by kind of work.", ["kind"], **more)
        self.window_rows = Counter("archport_window_rows", "Rows in it.", ["kind"], **more)
        self.window_tokens = Counter("archport_window_tokens", "Tokens in it.", ["kind"], **more)
        self.window_seconds = Counter("archport_window_seconds", "Seconds that it took.", ["kind"], **more)
        for name, (what, value) in gauges.items():
            Gauge(name, what, **more).set_function(value)

    def ran(self, kind: str, rows: int, tokens: int, seconds: float) -> None:
        """Note what the device did."""
        self.windows.labels(kind).inc()
        self.window_rows.labels(kind).inc(rows)
        self.window_tokens.labels(kind).inc(tokens)
        self.window_seconds.labels(kind).inc(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)

    def samples(self) -> dict[str, float]:
        """All of it by the names that the text has, as `archport_tokens_total{model="m"}`."""
        return {
            _named(sample.name, sample.labels): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }


def _named(name: str, labels: Mapping[str, str]) -> str:
    told = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{told}}}" if told else name

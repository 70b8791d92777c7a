"""What the service counts, for Prometheus: in a registry of its own, without any text asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from wherefrom.serve.service import Service

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class _ModelSeconds(Collector):
    """How long the model's thread has worked, read when it is asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The one counter."""
        yield CounterMetricFamily(
            "wherefrom_model_seconds",
            "Time that the model's thread has worked.",
            value=self._service.model.busy_seconds,
        )


class Metrics:
    """Counters of one service.

    Args:
        service: Whose queue and model are watched.
    """

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "wherefrom_requests",
            "Requests by route, method and status.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "wherefrom_request_seconds",
            "Time from a request to the end of its response.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        queue = Gauge(
            "wherefrom_queue_requests",
            "Requests that the model works for or that wait for it.",
            registry=self._registry,
        )
        queue.set_function(lambda: service.model.admitted)
        documents = Gauge("wherefrom_documents", "Documents of the index.", registry=self._registry)
        documents.set_function(lambda: len(service.index))
        generation = Gauge(
            "wherefrom_generation",
            "Published state of the index that was asked last.",
            registry=self._registry,
        )
        generation.set_function(lambda: service.index.manifest.generation)
        self._registry.register(_ModelSeconds(service))
        ProcessCollector(registry=self._registry)

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """Note a request that is over.

        Args:
            route: A path of the API, never one that a client made up.
            method: Likewise.
            status: Of the response.
            seconds: It took.
        """
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

"""``/metrics`` in Prometheus' text format. Counts of jobs come from the job file, so they survive restarts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cygnet.server.engine import Engine
from cygnet.server.store import ENDED, JobState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(Collector):
    """What a monitoring system reads of one server."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def describe(self) -> list[Metric]:
        """Nothing is read before somebody asks."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The values of this moment."""
        totals = self.engine.store.totals()
        jobs = GaugeMetricFamily("cygnet_jobs", "Jobs in the job file by state.", labels=["state"])
        seconds = GaugeMetricFamily("cygnet_job_seconds", "Seconds that ended jobs took, by state.", labels=["state"])
        for state in get_args(JobState):
            count, spent = totals.get(state, (0, 0.0))
            jobs.add_metric([state], count)
            if state in ENDED:
                seconds.add_metric([state], spent)
        yield jobs
        yield seconds
        yield GaugeMetricFamily("cygnet_worker_ready", "1 while a worker takes jobs.", value=int(self.engine.ready))
        yield CounterMetricFamily("cygnet_workers_lost", "Workers that died.", value=self.engine.lost_workers)
        yield GaugeMetricFamily("cygnet_sockets", "Connected clients.", value=len(self.engine.sockets))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)

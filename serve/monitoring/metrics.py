"""Prometheus metrics. Names follow those of other inference servers, with a prefix of this project."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from coconut_ds.generation.requests import Completion
from serve.engine.jobs import Job, Observer
from serve.engine.model_thread import ModelThread

PREFIX = "coconut:"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 300)
LABEL = ("model_name",)


class Metrics:
    """All metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: Iterable[str] = LABEL) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=self.registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(PREFIX + name, text, LABEL, buckets=SECONDS, registry=self.registry)

        self.http_requests = counter("http_requests", "HTTP responses, by status.", ("status",))
        self.connections_refused = counter("connections_refused", "Connections closed because all others worked.", ())
        self.connections_ended = counter(
            "connections_ended", "Connections ended because they kept the server waiting, by reason.", ("reason",)
        )
        self.ended = counter("request_success", "Completions that ended normally.", ("model_name", "finished_reason"))
        self.failed = counter("request_failures", "Completions that failed.")
        self.cancelled = counter("request_cancelled", "Completions cancelled because the client stopped waiting.")
        self.prompt_tokens = counter("prompt_tokens", "Positions of prompts, not counting thoughts.")
        self.tokens = counter("generation_tokens", "Tokens generated.")
        self.thoughts = counter("thoughts", "Continuous thoughts produced.")
        self.shared = counter("prefix_cache_tokens", "Positions of prompts copied from the cache instead of encoded.")
        self.first_token = histogram("time_to_first_token_seconds", "Seconds from acceptance to the first token.")
        self.inter_token = histogram("inter_token_latency_seconds", "Seconds from one token to the next.")
        self.end_to_end = histogram("e2e_request_latency_seconds", "Seconds from acceptance to the end.")

    def observer(self, model: str) -> Observer:
        """Returns an observer that counts the requests of a model."""
        return _Counts(self, model)

    def watch(self, loaded: Callable[[], dict[str, ModelThread]]) -> None:
        """Registers gauges that are read from the loaded models at every scrape."""
        self.registry.register(_Gauges(loaded))

    def watch_connections(self, count: Callable[[], tuple[int, int]]) -> None:
        """Registers the gauge of open connections: how many wait for their client, and how many work."""
        self.registry.register(_Connections(count))


class _Connections(Collector):
    """Reads the numbers of connections at every scrape."""

    def __init__(self, count: Callable[[], tuple[int, int]]) -> None:
        self._count = count

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        family = GaugeMetricFamily(PREFIX + "connections_open", "Open connections.", labels=("state",))
        for state, number in zip(("waiting", "working"), self._count(), strict=True):
            family.add_metric([state], number)
        yield family


class _Counts(Observer):
    """Updates the counters and histograms of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._ended = {reason: metrics.ended.labels(model, reason) for reason in ("eos", "stop", "length")}
        self._failed, self._cancelled = metrics.failed.labels(model), metrics.cancelled.labels(model)
        self._prompt, self._tokens = metrics.prompt_tokens.labels(model), metrics.tokens.labels(model)
        self._thoughts, self._shared = metrics.thoughts.labels(model), metrics.shared.labels(model)
        self._first, self._inter = metrics.first_token.labels(model), metrics.inter_token.labels(model)
        self._end_to_end = metrics.end_to_end.labels(model)

    def on_thought(self, job: Job) -> None:
        self._thoughts.inc()

    def on_token(self, job: Job, previous: float) -> None:
        times = job.times
        self._tokens.inc()
        if previous:
            self._inter.observe(times.last_token - previous)
        else:
            self._first.observe(times.first_token - times.submitted)

    def on_done(self, job: Job, completion: Completion) -> None:
        prompt = job.request.prompt
        self._prompt.inc(len(prompt) - prompt.num_thoughts)
        self._shared.inc(completion.num_shared)
        self._end_to_end.observe(job.times.done - job.times.submitted)
        if completion.finish_reason in self._ended:
            self._ended[completion.finish_reason].inc()

    def on_failed(self, job: Job) -> None:
        self._failed.inc()

    def on_cancelled(self, job: Job) -> None:
        self._cancelled.inc()


class _Gauges(Collector):
    """Reads the gauges at every scrape."""

    def __init__(self, loaded: Callable[[], dict[str, ModelThread]]) -> None:
        self._loaded = loaded

    def collect(self) -> Iterable[Metric]:
        """See ``Collector``."""
        gauges: dict[str, tuple[str, Callable[[ModelThread], float]]] = {
            "num_requests_running": ("Completions that occupy a slot.", lambda thread: thread.num_running),
            "num_requests_waiting": ("Completions that wait for a slot.", lambda thread: thread.num_waiting),
            "num_slots": ("Completions that can run at the same time.", lambda thread: thread.settings.slots),
            "kv_cache_usage_perc": (
                "Fraction of the cache in use, 0 to 1.",
                lambda thread: thread.cache_use,
            ),
        }
        loaded = self._loaded()
        for name, (text, read) in gauges.items():
            family = GaugeMetricFamily(PREFIX + name, text, labels=LABEL)
            for model, thread in loaded.items():
                family.add_metric([model], read(thread))
            yield family

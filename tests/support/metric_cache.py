"""TorchServe's metric cache, replaced by one that has the last value of each metric and all reported values."""


class MetricCache:
    """`lines` has each value that was reported, with the metric's name and the values of its labels, in order."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.lines: list[tuple[str, list[str], float]] = []

    def add_metric_to_cache(self, name: str, *_: object) -> "Metric":
        return Metric(name, self)

    def add(self, name: str, labels: list[str], value: float) -> None:
        self.last[name] = value
        self.lines.append((name, labels, value))


class Metric:
    def __init__(self, name: str, cache: MetricCache) -> None:
        self._name, self._cache = name, cache

    def add_or_update(self, value: float, labels: list[str]) -> None:
        self._cache.add(self._name, labels, value)

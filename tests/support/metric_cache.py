"""TorchServe's metric cache, replaced by one that has the last value of each metric."""


class MetricCache:
    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def add_metric_to_cache(self, name: str, *_: object) -> "Metric":
        return Metric(name, self.last)


class Metric:
    def __init__(self, name: str, last: dict[str, float]) -> None:
        self._name, self._last = name, last

    def add_or_update(self, value: float, _: list[str]) -> None:
        self._last[self._name] = value

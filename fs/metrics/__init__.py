"""What a process counts, shown to Prometheus: `GET /metrics` over HTTP, on a Unix socket or a port.

    families    a family of metrics as plain values, and histograms that cost little to fill
    requests    how many requests a service has answered, how, and in what time
    exposition  the text of all families, from sources that each component gives
    server      the HTTP server
    endpoint    where the server listens, by the configuration and the data of its process

    async with exposed(config.metrics, data, exposition):
        ...

A component's own families are in its own package: `meta/metrics.py`, `mgmtd/metrics.py`, and so on. Labels have few
values, known beforehand: verbs, outcomes, states; never a name of a file or a client.
docs/metrics.md lists the families; docs/decisions/0045-metrics.md says why it is made so.
"""

from .endpoint import address_of, exposed, exposed_from_thread
from .exposition import Exposition, Source
from .families import BOUNDS_S, Family, Histogram, Kind, counter, gauge, histogram, states
from .reader import Samples, parse_samples, read_samples
from .requests import RequestMeter

__all__ = [
    "BOUNDS_S",
    "Exposition",
    "Family",
    "Histogram",
    "Kind",
    "RequestMeter",
    "Samples",
    "Source",
    "address_of",
    "counter",
    "exposed",
    "exposed_from_thread",
    "gauge",
    "histogram",
    "parse_samples",
    "read_samples",
    "states",
]

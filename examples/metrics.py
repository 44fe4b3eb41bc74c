"""A program with metrics for Prometheus: what it puts and takes, what waits, what is lost.

    python -m pip install 'pubsubd[metrics]'
    python examples/metrics.py
    curl -s http://127.0.0.1:9700/metrics | grep ^pubsub_

In deploy/ are what Prometheus scrapes, alerts, and a dashboard for Grafana.
"""

from __future__ import annotations

import argparse
import math
import time

from prometheus_client import start_http_server

from pubsub import Pub, Sub
from pubsub.metrics import register


def main() -> None:
    parser = argparse.ArgumentParser(description="Publish, subscribe, and expose metrics.")
    parser.add_argument("--port", type=int, default=9700, help="of the metrics (default: 9700)")
    parser.add_argument("--count", type=int, help="end after so many messages (default: never)")
    args = parser.parse_args()

    register()  # once; the Pubs and Subs may come later
    start_http_server(args.port, addr="127.0.0.1")
    with Sub("sensors/*/temp") as readings, Pub("sensors/kitchen/temp") as kitchen:
        print(f"metrics at http://127.0.0.1:{args.port}/metrics; Ctrl-C ends it", flush=True)
        n = 0
        while args.count is None or n < args.count:
            kitchen.put(round(20 + 3 * math.sin(n), 2))
            readings.get(timeout=30)
            n += 1
            time.sleep(0.1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass

"""Clusters for the tests of pubsub.dask: of processes and of threads, made once for each worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:  # Dask and its libraries warn of things of their own
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.add_marker(pytest.mark.timeout(60, func_only=True))


def made(**options: Any) -> Iterator[Any]:
    """A client of a cluster with the plugin."""
    from distributed import Client, LocalCluster

    from pubsub.dask import PubSubPlugin

    with (
        LocalCluster(**{"n_workers": 2, "dashboard_address": ":0", **options}) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(PubSubPlugin())
        yield client


@pytest.fixture(scope="session")
def processes() -> Iterator[Any]:
    yield from made(threads_per_worker=4)


@pytest.fixture(scope="session")
def threads() -> Iterator[Any]:
    yield from made(processes=False, threads_per_worker=4)


@pytest.fixture(params=["processes", "threads"])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The current client, of a cluster of processes and of one of threads."""
    client = request.getfixturevalue(request.param)
    with client.as_current():
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """One that no other test has."""
    return f"{request.node.name} {id(request)}"

"""Tests in the workers of pytest-xdist say what they measure, and pytest shows it at the end.

pytest -n 2 examples/xdist
"""

import pytest

from pubsub import Coordinator, Pub, Sub, connect


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        connect(config.workerinput["coordinator"])
    else:  # pytest itself, with workers or without
        config.coordinator = Coordinator().address
        connect(config.coordinator)
        config.measured = Sub("measured")


@pytest.hookimpl(optionalhook=True)  # there is none without xdist
def pytest_configure_node(node):  # also a worker's that replaces one that crashed
    node.workerinput["coordinator"] = node.config.coordinator


@pytest.fixture(scope="session")
def measured():
    with Pub("measured") as pub:  # its end waits until all has arrived
        yield pub


def pytest_terminal_summary(terminalreporter, config):
    try:
        while True:
            terminalreporter.line(str(config.measured.get(timeout=0)))
    except TimeoutError:
        pass

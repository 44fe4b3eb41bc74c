"""The dashboard: a page in the browser that shows what flows, and what is wrong."""

try:
    import aiohttp as aiohttp
except ImportError as error:
    raise ImportError(
        f"the dashboard needs {error.name}: python -m pip install 'pubsubd[dashboard]'",
        name=error.name,
    ) from error

from pubsub.dashboard.access import Access
from pubsub.dashboard.server import Dashboard

__all__ = ["Access", "Dashboard"]

"""Dask's Pub and Sub, over this runtime: the old face, and what brings it into a cluster.

    client.register_plugin(PubSubPlugin())  # once; or: dask scheduler --preload pubsub.dask
    from pubsub.dask import Pub, Sub        # in tasks, actors and clients, as it was in distributed

The plugin starts a coordinator beside the scheduler, on a thread and loop of its own, and tells
workers and clients where it is. Nothing of this package runs in Dask's event loops or in Dask's
streams: what goes wrong here is raised to who called, and closes nothing of Dask's.
"""

try:
    import cloudpickle as cloudpickle
    import distributed as distributed
except ImportError as error:
    raise ImportError(
        f"pubsub.dask needs {error.name}: python -m pip install 'pubsubd[dask]'", name=error.name
    ) from error

from pubsub.dask.faces import Pub, Sub
from pubsub.dask.homes import peer
from pubsub.dask.names import topic_of
from pubsub.dask.plugin import PubSubPlugin, dask_setup, dask_teardown, info

__all__ = ["Pub", "PubSubPlugin", "Sub", "dask_setup", "dask_teardown", "info", "peer", "topic_of"]

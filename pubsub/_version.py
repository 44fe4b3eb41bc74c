"""The version, in one place: the build reads it, and so does ``pubsub --version``."""

__version__ = "0.1.0"

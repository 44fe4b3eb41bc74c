"""Beside Dask's own Pub and Sub, which distributed had until 2025.3: the same program in both.

``course`` is that program, run by two Pythons: one of an environment with distributed 2025.3.0,
which cannot be installed beside a newer one, and this project's own.
"""

"""Figures drawn quickly, as in `tests.synthetic_run`."""

from tests.synthetic_run import rough

__all__ = ["rough"]

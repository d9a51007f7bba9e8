"""The process group of one worker, as in `tests.train.conftest`."""

from tests.train.conftest import process_group

__all__ = ["process_group"]

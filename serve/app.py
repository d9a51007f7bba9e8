"""`serve run serve.app:build model=runs/mine` in a checkout; from a wheel it is `growtx.serving.app:build`."""

from growtx.serving.app import build

__all__ = ["build"]

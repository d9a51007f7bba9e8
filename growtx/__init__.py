"""growtx: growing decoder-only transformers in stages on a frozen, non-semantic substrate.

After Bochkov, "Growing Transformers" (arXiv:2507.07129) and "Emergent Semantics Beyond Token Embeddings"
(arXiv:2507.04886). The public names are few: load a result with `growtx.load_model`, everything else is a command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]

if TYPE_CHECKING:
    from growtx.growth.results import load_model


def __getattr__(name: str) -> Any:
    if name == "load_model":  # lazily: importing growtx must not import torch
        from growtx.growth.results import load_model

        return load_model
    raise AttributeError(f"module 'growtx' has no attribute {name!r}")

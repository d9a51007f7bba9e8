"""The decoder that grows and the ensembles made of it, as transformers models.

Importing this package registers them with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from growtx.models.block import GrowtxBlock, initialize_block
from growtx.models.causal_lm import GrowtxForCausalLM, GrowtxModel, GrowtxOutput
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import ParameterCounts, num_params

AutoConfig.register(GrowtxConfig.model_type, GrowtxConfig)
AutoModelForCausalLM.register(GrowtxConfig, GrowtxForCausalLM)

__all__ = [
    "GrowtxBlock",
    "GrowtxConfig",
    "GrowtxForCausalLM",
    "GrowtxModel",
    "GrowtxOutput",
    "ParameterCounts",
    "initialize_block",
    "num_params",
]

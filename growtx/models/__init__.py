"""The decoder that grows and the ensembles made of it, as transformers models.

Importing this package registers them with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from growtx.compat.peft import know_growtx
from growtx.models.causal_lm import GrowtxForCausalLM, GrowtxModel
from growtx.models.configuration import GrowtxConfig
from growtx.models.counting import num_params
from growtx.models.ensemble import (
    GrowtxEnsembleConfig,
    GrowtxEnsembleForCausalLM,
    GrowtxFusedEnsembleConfig,
    GrowtxFusedEnsembleForCausalLM,
    from_members,
    to_fused,
)

for _config, _model in (
    (GrowtxConfig, GrowtxForCausalLM),
    (GrowtxEnsembleConfig, GrowtxEnsembleForCausalLM),
    (GrowtxFusedEnsembleConfig, GrowtxFusedEnsembleForCausalLM),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForCausalLM.register(_config, _model)
AutoModel.register(GrowtxConfig, GrowtxModel)
know_growtx(GrowtxConfig.model_type, GrowtxEnsembleConfig.model_type)

__all__ = [
    "GrowtxConfig",
    "GrowtxEnsembleConfig",
    "GrowtxEnsembleForCausalLM",
    "GrowtxForCausalLM",
    "GrowtxFusedEnsembleConfig",
    "GrowtxFusedEnsembleForCausalLM",
    "from_members",
    "num_params",
    "to_fused",
]

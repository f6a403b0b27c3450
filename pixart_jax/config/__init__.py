"""Every setting of a run with its default, the checks on them, and the typed objects they describe.

A file in configs/ starts from `default_config()` and changes what is its own; `--config.key=value` changes it again.
This package needs only the core's imports, so that a benchmark can read configs on a machine without ml_collections.
"""

from pixart_jax.config.checks import check_attention, check_batch, check_config, check_offload
from pixart_jax.config.defaults import ConfigDict, default_config
from pixart_jax.config.files import find_config, load_config, read_config_file
from pixart_jax.config.phases import Phase, phases
from pixart_jax.config.processes import target_of
from pixart_jax.config.settings import check_keys, flatten, override, require_setting, unknown_key_error
from pixart_jax.config.typed import (
    architecture,
    average_lengths,
    build_adapter,
    build_model,
    build_objective,
    build_route,
    build_tx,
    eval_metrics,
    eval_timesteps,
    guidance_of_config,
    holds_weights,
    lora_spec,
    mesh_spec,
    optimizer_spec,
    path_drop_of,
    position_base,
    takes_guidance,
)

__all__ = [
    "ConfigDict",
    "Phase",
    "architecture",
    "average_lengths",
    "build_adapter",
    "build_model",
    "build_objective",
    "build_route",
    "build_tx",
    "check_attention",
    "check_batch",
    "check_config",
    "check_keys",
    "check_offload",
    "default_config",
    "eval_metrics",
    "eval_timesteps",
    "find_config",
    "flatten",
    "guidance_of_config",
    "holds_weights",
    "load_config",
    "lora_spec",
    "mesh_spec",
    "optimizer_spec",
    "override",
    "path_drop_of",
    "phases",
    "position_base",
    "read_config_file",
    "require_setting",
    "takes_guidance",
    "target_of",
    "unknown_key_error",
]

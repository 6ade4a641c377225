"""The logical names of axes that trainers write, and what each of them means."""

from collections.abc import Mapping
from typing import Any

from gradkit import checks

MEANINGS = ("stack", "expert", "fused", "width", "inner", "vocab", "position", "vector", "unknown")

# "model" is none of them: it is what trainers call an axis of the mesh, which boxes name as well.
_WORDS = {
    "stack": "layers layer stage stages circular_repeats repeats repeat dense_layers moe_layers layers_per_stage blocks"
    " block scan stack num_layers depth ensemble members member critics unrolled_layers layers_outside_pipeline",
    "expert": "exp expert experts num_experts exp_with_fsdp routed_experts",
    "fused": "qkv gate_up kv_pair fused q_k_v",
    "width": "embed embedding embed_vocab embed_moe embed_no_exp embed_dim embed_tensor_transpose emb model_dim"
    " d_model hidden_size residual width features_in",
    "inner": "mlp mlp_moe mlp_no_fsdp moe_mlp ffn ffw intermediate heads q_heads kv_heads kv kv_head_dim head_dim"
    " head_size kv_head q_heads_per_group qk_head_dim v_head_dim joined_kv qkv_dim q_lora kv_lora q_lora_up_proj"
    " kv_lora_up_proj head n_heads num_heads num_kv_heads conv_out state",
    "vocab": "vocab vocab_size vocabulary tokens_vocab entries",
    "position": "position positions pos seq seq_len length max_len relpos_buckets buckets",
    "vector": "norm",
}
AXIS_NAMES: Mapping[str, str] = {name: meaning for meaning, names in _WORDS.items() for name in names.split()}


def meanings(names: Any, rank: int, table: Mapping[str, str] | None = None) -> tuple[str, ...] | None:
    """What the axes of one leaf mean by their logical names.

    Args:
      names: per axis a name, a tuple of names or None; a `PartitionSpec` will do. None: there are no names.
      rank: how many axes the leaf has.
      table: names of a user's own and what they mean, which take precedence over `AXIS_NAMES`.

    Returns:
      Per axis one of `MEANINGS`; None where the names say nothing: none is known, or they do not fit the rank.

    Raises:
      ValueError: a meaning that does not exist.

    Example:
      >>> meanings(("embed", "layers", "mlp"), 3)
      ('width', 'stack', 'inner')
    """
    for meaning in (table or {}).values():
        checks.choice("a meaning in the table of axis names", meaning, MEANINGS)
    if names is None or isinstance(names, str):
        return None
    known = {**AXIS_NAMES, **(table or {})}
    found = tuple(known.get(_name(entry), "unknown") for entry in names)
    if len(found) != rank or all(meaning == "unknown" for meaning in found):
        return None
    return found


def _name(entry: Any) -> str:
    """The name of one axis: a string, a named axis, or a tuple of one of them; "" for none or several."""
    if isinstance(entry, tuple | list):
        entry = entry[0] if len(entry) == 1 else None
    name = getattr(entry, "name", entry)
    return name if isinstance(name, str) else ""

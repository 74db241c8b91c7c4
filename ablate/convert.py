"""Weights between our decoder and transformers' GPT-2 and Llama, both ways, without a change of a single bit.

Works on state dicts and on the attributes of a configuration (transformers 5), and needs no transformers itself:

    theirs = LlamaForCausalLM.from_pretrained(...)
    spec.set_all(convert.settings(theirs.config))
    ours = build(spec.resolve(), "cpu")
    ours.load_state_dict(convert.from_transformers(theirs.config, theirs.state_dict()))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ablate.errors import UserError

ACTIVATIONS: dict[str, Any] = {
    "gelu_new": {"gelu": {"approximate": "tanh"}},
    "gelu_pytorch_tanh": {"gelu": {"approximate": "tanh"}},
    "gelu": {"gelu": {"approximate": "none"}},
    "relu": "relu",
    "silu": "silu",
}
GATED: dict[str, Any] = {"silu": "swiglu", "gelu": "geglu", "relu": "reglu"}
"""Our activation for each of theirs that acts on a gate."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One tensor of ours and those of theirs that it is made of, stacked by rows; `transposed`: theirs are [in, out]."""

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False


def settings(config: Any) -> dict[str, Any]:
    """What a spec must be set to for a decoder like theirs: dotted fields and their values.

    Raises:
        UserError: a model that our decoder cannot be.
    """
    return _family(config)[0](config)


def from_transformers(config: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our decoder from that of theirs (`GPT2LMHeadModel`, `LlamaForCausalLM`).

    Raises:
        UserError: a model that our decoder cannot be, or weights that are missing or have no place in it.
    """
    rules = _family(config)[1](config)
    _expect(weights, {name for rule in rules for name in rule.theirs})
    return {rule.ours: torch.cat([_turned(rule, weights[name]) for name in rule.theirs]) for rule in rules}


def to_transformers(config: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of their model from that of our decoder; the inverse of `from_transformers`.

    Raises:
        UserError: a model that our decoder cannot be, or weights that are missing or have no place in theirs.
    """
    rules = _family(config)[1](config)
    _expect(weights, {rule.ours for rule in rules})
    found = {}
    for rule in rules:
        whole = weights[rule.ours]
        for name, part in zip(rule.theirs, whole.split(rule.rows or (len(whole),)), strict=True):
            found[name] = _turned(rule, part).clone(memory_format=torch.contiguous_format)
    return found


def _turned(rule: _Rule, weight: Tensor) -> Tensor:
    return weight.T if rule.transposed else weight


def _expect(weights: Mapping[str, Tensor], names: set[str]) -> None:
    if wrong := sorted(names ^ set(weights)):
        raise UserError(f"weights {'lack' if wrong[0] in names else 'have no place for'} {wrong[0]!r}")


def _gpt2_settings(config: Any) -> dict[str, Any]:
    """Radford et al. 2019: learned positions, layer norm before each branch, biases, GELU by tanh."""
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise UserError("only attention scaled by 1 / sqrt(head width) can be converted")
    return _settings(config.n_embd, config.n_layer, config.n_head, config) | {
        "model.ffn_dim": config.n_inner or 4 * config.n_embd,
        "model.attention": "mha",
        "model.activation": _activation(ACTIVATIONS, config.activation_function),
        "model.norm": {"layernorm": {"eps": config.layer_norm_epsilon}},
        "model.position": "learned",
        "model.init": {"gpt2": {"std": config.initializer_range}},
        "model.bias": True,
        "model.dropout.attention_weights": config.attn_pdrop,
        "model.dropout.attention_output": config.resid_pdrop,
        "model.dropout.feed_forward_output": config.resid_pdrop,
        "model.dropout.embedding": config.embd_pdrop,
        "data.seq_len": config.n_positions,
    }


def _gpt2_rules(config: Any) -> list[_Rule]:
    rules = [
        _Rule("embedding.weight", ("transformer.wte.weight",)),
        _Rule("position.table.weight", ("transformer.wpe.weight",)),
        _Rule("norm.weight", ("transformer.ln_f.weight",)),
        _Rule("norm.bias", ("transformer.ln_f.bias",)),
        _Rule("head.weight", ("lm_head.weight",)),
    ]
    layers = {
        "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
        "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj",
        "residuals.0.norm": "ln_1", "residuals.1.norm": "ln_2",
    }  # fmt: skip
    for i in range(config.n_layer):
        for ours, theirs in layers.items():
            matrix = not theirs.startswith("ln")
            for kind in ("weight", "bias"):
                name = f"transformer.h.{i}.{theirs}.{kind}"
                rules.append(_Rule(f"blocks.{i}.{ours}.{kind}", (name,), transposed=matrix and kind == "weight"))
    return rules


def _llama_settings(config: Any) -> dict[str, Any]:
    """arXiv:2302.13971: rotary embedding, RMSNorm before each branch, SwiGLU; grouped queries as in arXiv:2307.09288."""
    if config.rope_parameters["rope_type"] != "default":
        raise UserError(f"a rotary embedding of type {config.rope_parameters['rope_type']!r} cannot be converted")
    if config.attention_bias != config.mlp_bias:
        raise UserError("a bias in attention or feed-forward alone cannot be converted: model.bias is for both")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return _settings(config.hidden_size, config.num_hidden_layers, heads, config) | {
        "model.head_dim": config.head_dim,
        "model.ffn_dim": config.intermediate_size,
        "model.attention": "mha" if kv_heads == heads else {"gqa": {"n_kv_heads": kv_heads}},
        "model.activation": _activation(GATED, config.hidden_act),
        "model.norm": {"rmsnorm": {"eps": config.rms_norm_eps}},
        "model.position": {"rope": {"base": float(config.rope_parameters["rope_theta"])}},
        "model.init": {"normal": {"std": config.initializer_range}},
        "model.bias": config.attention_bias,
        "model.dropout": 0.0,
        "model.dropout.attention_weights": config.attention_dropout,
        "data.seq_len": config.max_position_embeddings,
    }


def _llama_rules(config: Any) -> list[_Rule]:
    rules = [
        _Rule("embedding.weight", ("model.embed_tokens.weight",)),
        _Rule("norm.weight", ("model.norm.weight",)),
        _Rule("head.weight", ("lm_head.weight",)),
    ]
    width = config.head_dim
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    layers = {
        "attention.qkv": (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            tuple(n * width for n in heads),
        ),
        "attention.out": (("self_attn.o_proj",), ()),
        "feed_forward.up": (("mlp.gate_proj", "mlp.up_proj"), (config.intermediate_size,) * 2),
        "feed_forward.down": (("mlp.down_proj",), ()),
    }
    for i in range(config.num_hidden_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        rules.append(_Rule(f"{ours}.residuals.0.norm.weight", (f"{theirs}.input_layernorm.weight",)))
        rules.append(_Rule(f"{ours}.residuals.1.norm.weight", (f"{theirs}.post_attention_layernorm.weight",)))
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            for name, (parts, rows) in layers.items():
                rules.append(_Rule(f"{ours}.{name}.{kind}", tuple(f"{theirs}.{part}.{kind}" for part in parts), rows))
    return rules


def _settings(dim: int, n_layers: int, n_heads: int, config: Any) -> dict[str, Any]:
    return {
        "model.dim": dim,
        "model.n_layers": n_layers,
        "model.n_heads": n_heads,
        "model.vocab_size": config.vocab_size,
        "model.window": "full",
        "model.qk_norm": "none",
        "model.attention_soft_cap": None,
        "model.output_soft_cap": None,
        "model.block": "sequential",
        "model.placement": "pre",
        "model.tie_embeddings": config.tie_word_embeddings,
        "data.document_masking": False,
    }


def _activation(known: Mapping[str, Any], name: str) -> Any:
    if name not in known:
        raise UserError(f"the activation {name!r} cannot be converted; known: {', '.join(known)}")
    return known[name]


Family = tuple[Callable[[Any], dict[str, Any]], Callable[[Any], list[_Rule]]]
FAMILIES: dict[str, Family] = {"gpt2": (_gpt2_settings, _gpt2_rules), "llama": (_llama_settings, _llama_rules)}


def _family(config: Any) -> Family:
    if config.model_type not in FAMILIES:
        raise UserError(f"a model of type {config.model_type!r} cannot be converted; known: {', '.join(FAMILIES)}")
    return FAMILIES[config.model_type]

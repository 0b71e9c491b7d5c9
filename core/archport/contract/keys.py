"""Which keys of a config a plugin obeys, refuses, or knows to change nothing; all others are named aloud.

Pure data and one check. Knows no architecture.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from archport.contract.errors import SpecError

log = logging.getLogger("archport")

# What every config may hold: read by core, of training, of generation, or of a library that saved it.
EVERYWHERE = frozenset(
    {
        *(
            "architectures",
            "auto_map",
            "causal",
            "causal_stated",
            "dtype",
            "id2label",
            "is_causal",
            "is_decoder",
            "label2id",
        ),
        *("model_type", "num_labels", "problem_type", "quantization", "quantization_config", "text_only"),
        *("tie_word_embeddings", "torch_dtype", "use_bidirectional_attention"),
        *("bos_token_id", "cls_token_id", "decoder_start_token_id", "eos_token_id", "mask_token_id", "pad_token_id"),
        *("sep_token_id", "unk_token_id"),
        *("attention_dropout", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "embedding_dropout"),
        *("hidden_dropout", "hidden_dropout_prob", "mlp_dropout", "initializer_cutoff_factor", "initializer_factor"),
        *("initializer_range", "output_router_logits", "pretraining_tp", "router_aux_loss_coef"),
        *("attn_implementation", "chunk_size_feed_forward", "experts_implementation", "finetuning_task"),
        *("gradient_checkpointing", "name_or_path", "output_attentions", "output_hidden_states", "output_past"),
        *("prefix", "return_dict", "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class"),
        *("torchscript", "transformers_version", "transformers.js_config", "unsloth_fixed", "unsloth_version"),
        *("use_bfloat16", "use_cache"),
        *("begin_suppress_tokens", "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping"),
        *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id"),
        *("forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length"),
        *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores"),
        *("remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature"),
        *("top_k", "top_p", "typical_p"),
        *("sentence_transformers", "sbert_ce_default_activation_function"),
    }
)
ROPE_KEYS = frozenset(
    {
        *("global_rope_theta", "local_rope_theta", "original_max_position_embeddings", "partial_rotary_factor"),
        *("rope_local_base_freq", "rope_local_scaling", "rope_parameters", "rope_scaling", "rope_theta"),
    }
)
# No model of archport follows these.
REFUSED: Mapping[str, Sequence[Any]] = {"add_cross_attention": (), "is_encoder_decoder": (), "pruned_heads": ()}
# With these values nothing changes, whatever the key is for.
_NOTHING: tuple[Any, ...] = (None, False, [], {})


@dataclass(frozen=True, slots=True)
class ConfigKeys:
    """The keys of one level of a config.

    Args:
        arch: the architecture's name, for messages.
        obeyed: keys that the claim or the module reads.
        inert: keys that change no number in the reference implementation either.
        refused: key -> the values besides null, false and empty ones that change nothing; any other is refused.
    """

    arch: str
    obeyed: Collection[str]
    inert: Collection[str] = ()
    refused: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])

    def check(self, config: Mapping[str, Any]) -> None:
        """Name keys that no list names, once per process, as a warning.

        Args:
            config: normalised, or a part of it.

        Raises:
            SpecError: a key that changes numbers in a way that the architecture's module does not follow.
        """
        refused = {**REFUSED, **self.refused}
        for key, harmless in refused.items():
            value = config.get(key)
            if value not in _NOTHING and value not in harmless:
                expected = " or ".join(repr(each) for each in harmless) or "none"
                raise SpecError(f"{self.arch}: {key}={value!r} of config.json is not supported; expected {expected}")
        known = {*EVERYWHERE, *self.obeyed, *self.inert, *refused}
        unknown = sorted(
            key for key, value in config.items() if key not in known and value is not None and not key.startswith("_")
        )
        if unknown:
            _warn(self.arch, tuple(unknown))


@cache
def _warn(arch: str, keys: tuple[str, ...]) -> None:
    log.warning(
        "%s: config.json has %s, which archport does not know; if that changes the model, so are its results wrong",
        arch,
        ", ".join(keys),
    )


def head_width(owner: str, hidden_size: int, n_heads: int, *, multiple: int = 1) -> int:
    """The head_dim of blocks whose heads share their width: hidden_size / n_heads.

    Args:
        owner: how a message calls the blocks, such as "bert" or "the vision tower".
        multiple: of what head_dim has to be a multiple; 4 where each half of a head turns by a coordinate of its own.

    Raises:
        SpecError: the heads do not share the width evenly.
    """
    if n_heads < 1 or hidden_size % n_heads:
        raise SpecError(f"{owner}: hidden_size={hidden_size} is not a multiple of its {n_heads} heads")
    width = hidden_size // n_heads
    if width % multiple:
        raise SpecError(
            f"{owner}: hidden_size={hidden_size} over {n_heads} heads is a head_dim of {width}; "
            f"expected a multiple of {multiple}"
        )
    return width

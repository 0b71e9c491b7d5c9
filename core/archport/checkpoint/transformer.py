"""What a pipeline says of its Transformer module: `sentence_bert_config.json` and its older names.

Reads that one file. A key that changes numbers is obeyed by whoever asks for it here, or refused by name; a key that
no list names is warned of. Source of the rules: sentence-transformers 6.2, where the file's entries are the arguments
of the module.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archport.checkpoint.disk import inside, read_object
from archport.checkpoint.files import TABLES, body_folder, module_kind, pipeline_modules
from archport.contract.errors import CheckpointError
from archport.contract.inputs import Messages

log = logging.getLogger("archport")

# The file is named after the class of the day.
_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
# Say where files are, or how arrays lie in memory; archport decides both by itself.
_ABOUT_LOADING = frozenset(
    {
        *("attn_implementation", "cache_dir", "code_revision", "device_map", "dtype", "force_download", "is_local"),
        *(
            "local_files_only",
            "low_cpu_mem_usage",
            "name_or_path",
            "proxies",
            "resume_download",
            "return_unused_kwargs",
        ),
        *("revision", "token", "torch_dtype", "trust_remote_code", "use_auth_token", "use_fast", "use_safetensors"),
        *("use_cache", "add_pooling_layer", "_attn_implementation", "reference_compile", "experts_implementation"),
    }
)
# Arguments of a tokenizer's call that change no id of a text that fits.
_ABOUT_SHAPES = frozenset(
    {
        *("logits_to_keep", "pad_to_multiple_of", "padding", "padding_side", "return_attention_mask", "return_dict"),
        *("return_length", "return_offsets_mapping", "return_special_tokens_mask", "return_tensors", "verbose"),
        "return_token_type_ids",
    }
)
_KNOWN = frozenset(
    {
        *("max_seq_length", "do_lower_case", "processor_kwargs", "config_kwargs", "model_kwargs", "processing_kwargs"),
        *("query_length", "document_length", "query_expansion", "transformer_task", "modality_config", "backend"),
        *("module_output_name", "unpad_inputs", "tokenizer_name_or_path", "do_query_expansion"),
        *("attend_to_expansion_tokens", "query_prefix", "document_prefix", "skiplist_words"),
    }
)
# A tokenizer without a limit states this one.
_NO_LIMIT = 1_000_000_000


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """The Transformer module of a pipeline.

    Args:
        source: the file, None where a checkpoint has no pipeline or no such file.
        task: which head of the architecture runs.
        lowercase: lower-case every text first.
        tokenizer: keys that win over those of `tokenizer_config.json`.
        config: keys that win over those of `config.json`.
        max_tokens: `max_seq_length`; a `model_max_length` among `tokenizer` wins over it.
        call_limit: tokens that each call of the tokenizer keeps, which wins over every other limit.
        truncates: whether a longer text is cut at all.
        special_tokens: whether the tokenizer puts its special tokens around a text.
        query_tokens, document_tokens: tokens of a text in that role.
        expands: whether queries are filled up to a length, as late interaction wants.
        messages: how texts become messages; None where they stay texts.
        output: the feature that the module makes.
        plain_tokenizer: whether tokenizer.json alone is the tokenizer, whatever other files say.
    """

    source: str | None = None
    task: str = "feature-extraction"
    lowercase: bool = False
    tokenizer: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    max_tokens: int | None = None
    call_limit: int | None = None
    truncates: bool = True
    special_tokens: bool = True
    query_tokens: int | None = None
    document_tokens: int | None = None
    expands: bool = False
    messages: Messages | None = None
    output: str | None = None
    plain_tokenizer: bool = False


def transformer_settings(folder: Path, route: str | None = None) -> TransformerSettings:
    """The settings of the Transformer module in a checkpoint's folder; the defaults without a pipeline.

    Raises:
        CheckpointError: a key that changes numbers in a way that archport does not follow, or a value that is none.
    """
    entries = pipeline_modules(folder, route)
    if entries is None:
        return TransformerSettings()
    if any(module_kind(entry) in TABLES for entry in entries):
        # It has no such file, and a tokenizer that is one file.
        return TransformerSettings(special_tokens=False, plain_tokenizer=True)
    masked = any(module_kind(entry) == "MLMTransformer" for entry in entries)
    task = "fill-mask" if masked else "feature-extraction"
    place = inside(folder, body_folder(folder, route), "modules.json")
    # As the reference: an empty file counts as none.
    for name in _FILES:
        stated = read_object(inside(place, name, "a pipeline"))
        if stated:
            return _Reader(str(place / name), stated, task).settings()
    return TransformerSettings(task=task)


@dataclass(slots=True)
class _Reader:
    """Reads one file. `where` names it in messages; `task` is that of its module's class."""

    where: str
    stated: dict[str, Any]
    task: str

    def settings(self) -> TransformerSettings:
        for old, new in _OLD_NAMES.items():
            if old in self.stated:
                self.stated[new] = self.stated.pop(old)
        unknown = sorted(key for key in self.stated if key not in _KNOWN)
        if unknown:
            log.warning("%s: archport does not know %s, and reads the file without", self.where, ", ".join(unknown))
        if self.stated.get("tokenizer_name_or_path"):
            raise self._refusal(
                "tokenizer_name_or_path", "copy that tokenizer's files into the folder, and drop the key"
            )
        model = self._mapping("model_kwargs")
        for key in model:
            if key not in _ABOUT_LOADING:
                raise self._refusal(
                    f"model_kwargs.{key}", "save the model as those arguments make it, and drop the key"
                )
        processing = self._mapping("processing_kwargs")
        call = {**_mapping(processing.get("text")), **_mapping(processing.get("common"))}
        self._check_call(call)
        tokenizer = {
            key: value for key, value in self._mapping("processor_kwargs").items() if key not in _ABOUT_LOADING
        }
        config = {key: value for key, value in self._mapping("config_kwargs").items() if key not in _ABOUT_LOADING}
        for kind, given in (("processor_kwargs", tokenizer), ("config_kwargs", config)):
            for key in ("subfolder", "gguf_file", "config", "tokenizer_type", "fix_mistral_regex", "chat_template"):
                if key in given:
                    raise self._refusal(
                        f"{kind}.{key}", "save the checkpoint as that argument makes it, and drop the key"
                    )
        return TransformerSettings(
            source=self.where,
            task=str(self.stated.get("transformer_task") or self.task),
            lowercase=self.stated.get("do_lower_case") is True,
            tokenizer=tokenizer,
            config=config,
            max_tokens=self._length("max_seq_length", self.stated.get("max_seq_length")),
            call_limit=self._length("processing_kwargs.text.max_length", call.get("max_length")),
            truncates=call.get("truncation", True) not in (False, "do_not_truncate"),
            special_tokens=call.get("add_special_tokens", True) is not False,
            query_tokens=self._length("query_length", self.stated.get("query_length")),
            document_tokens=self._length("document_length", self.stated.get("document_length")),
            expands=self.stated.get("query_expansion") is not None,
            messages=self._messages(_mapping(processing.get("chat_template"))),
            output=self.stated.get("module_output_name"),
        )

    def _mapping(self, key: str) -> dict[str, Any]:
        value = self.stated.get(key)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{self.where}: {key}={value!r:.80}; expected an object of names and values.")
        return _mapping(value)

    def _check_call(self, call: Mapping[str, Any]) -> None:
        for key, value in call.items():
            if key in ("max_length", "add_special_tokens") or key in _ABOUT_SHAPES:
                continue
            if key == "truncation" and value in (True, False, None, "longest_first", "do_not_truncate"):
                continue
            if (key, value) in (("stride", 0), ("split_special_tokens", False), ("is_split_into_words", False)):
                continue
            raise self._refusal(f"processing_kwargs.text.{key}", "save the pipeline without it")

    def _messages(self, chat: dict[str, Any]) -> Messages | None:
        """How texts become messages, where the module's modalities say that they do."""
        modalities = self._mapping("modality_config")
        for name, entry in modalities.items():
            if name not in ("text", "message"):
                continue
            method, output = _mapping(entry).get("method"), _mapping(entry).get("method_output_name")
            if method != "forward" or output not in ("last_hidden_state", "logits"):
                raise self._refusal(
                    f"modality_config.{name}",
                    f"archport takes last_hidden_state or logits of forward; here it is {output!r} of {method!r}",
                )
        if "message" not in modalities:
            return None
        form = _mapping(modalities["message"]).get("format", "structured")
        if form != "flat" and form != "structured":
            raise self._refusal("modality_config.message.format", "expected flat or structured")
        restore = chat.pop("restore_suffix", True)
        for key in ("padding", "truncation", "max_length", "return_tensors", "tools", "documents", "chat_template"):
            if key in chat:
                raise self._refusal(f"processing_kwargs.chat_template.{key}", "save the pipeline without it")
        return Messages(form, chat, restore is not False)

    def _length(self, key: str, value: Any) -> int | None:
        return token_count(self.where, key, value)

    def _refusal(self, key: str, advice: str) -> CheckpointError:
        value: Any = self.stated
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return CheckpointError(f"{self.where}: {key}={value!r:.120} changes what the model gives; {advice}.")


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def token_count(where: str, key: str, value: Any) -> int | None:
    """A stored number of tokens, None for none; files spell "no limit" as a number that no text reaches.

    Raises:
        CheckpointError: for what is no number of tokens.
    """
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > _NO_LIMIT):
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 1:
        raise CheckpointError(f"{where}: {key}={value!r}; expected a number of tokens >= 1 or null.")
    return int(value)

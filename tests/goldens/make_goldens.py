"""Make the goldens of this folder again: `python make_goldens.py [NAME ...]` of those in NAMES, all by default.

Runs in an environment with torch, transformers and sentence-transformers of the versions in the `goldens` dependency
group. `quantised` only records: quantise.py, which needs mlx and mlx-lm, makes those checkpoints first.
`adapters` comes last: its bases are other goldens.
"""

import sys

import torch

NAMES = ("minilm", "qwen3", "qwen3-families", "qwen2", "qwen35", "qwen3-vl", "bert", "encoders", "published")
NAMES += ("tokenizers", "quantised", "adapters")


def main(names: list[str]) -> None:
    """Run the named parts in order."""
    torch.set_num_threads(1)  # one order of summation, so that a second run writes the same bytes
    for name in names or NAMES:
        if name == "minilm":
            from golden_minilm import record

            record()
        elif name == "qwen3":
            from golden_qwen3 import record_embedding, record_sharded

            record_embedding()
            record_sharded()
        elif name == "qwen3-families":
            from golden_qwen3_families import record

            record()
        elif name == "qwen2":
            from golden_qwen2 import record

            record()
        elif name == "qwen35":
            from golden_qwen35 import record

            record()
        elif name == "qwen3-vl":
            from golden_qwen3_vl import main as record

            record()
        elif name == "bert":
            from golden_bert import record_plain, record_prefixed

            record_plain()
            record_prefixed()
        elif name == "encoders":
            import golden_bidirectional_decoders
            import golden_clip
            import golden_encoders
            import golden_heads
            import golden_nemotron
            import golden_routed
            import golden_siglip
            import golden_splade
            import golden_static
            import golden_tags

            golden_encoders.record()
            golden_bidirectional_decoders.record()
            golden_heads.record()
            golden_nemotron.record()
            golden_siglip.record()
            golden_clip.record()
            golden_splade.record()
            golden_routed.record()
            golden_static.record()
            golden_tags.record()
        elif name == "published":
            from golden_published import record

            record()
        elif name == "tokenizers":
            import golden_chats
            import golden_tokenizer_files
            import golden_tokenizers

            golden_chats.record()
            golden_tokenizer_files.record()
            golden_tokenizers.record()
        elif name == "quantised":
            from golden_quantised import record

            record()
        elif name == "adapters":
            from golden_adapters import record

            record()
        else:
            raise SystemExit(f"no golden is called {name!r}; there are {', '.join(NAMES)}")


if __name__ == "__main__":
    main(sys.argv[1:])

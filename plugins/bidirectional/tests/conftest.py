"""Writes the tiny checkpoints of the families' own layouts, which no golden holds."""

import json

import mlx.core as mx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers


@pytest.fixture(scope="session")
def written():
    """Writes a checkpoint and returns its folder; its tokenizer reads the text "t007 t012" as the ids 7 and 12."""

    def write(folder, config, weights):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        arrays = {name: mx.array(value) for name, value in weights.items()}
        mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "pt"})
        # No word begins another: a special token is found inside words, too.
        vocabulary = {f"t{index:03}": index for index in range(config["vocab_size"])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="t000"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        words.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "t001"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return write

"""From a name nobody has on disk to vectors, over a loopback server and the real hub client."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.cli.described import described, described_on
from archport.cli.info import gather
from archport.cli.plan import make
from archport.contract import ModelNotFound
from archport.device.profiles import profile

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_the_size_less_name_downloads_its_model_and_embeds(hub, tmp_path, caplog):
    folder = tmp_path / "published"
    shutil.copytree(GOLDENS / "qwen3-embed", folder)
    (folder / "modeling_evil.py").write_text("raise SystemExit('remote code was run')")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    hub.add("Qwen/Qwen3-Embedding-0.6B", folder)
    caplog.set_level("INFO", "archport")
    model = engine.load("Qwen/Qwen3-Embedding")
    vectors = model.embed(["a text", "another"])
    assert model.name == "Qwen/Qwen3-Embedding-0.6B"
    assert "'Qwen/Qwen3-Embedding' is loaded as 'Qwen/Qwen3-Embedding-0.6B'" in caplog.text
    assert vectors.shape == (2, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert (vectors == engine.load(GOLDENS / "qwen3-embed").embed(["a text", "another"])).all()
    assert not any(name.endswith((".py", ".bin")) for name in hub.asked_for())


def test_sharded_weights_are_downloaded_whole(hub):
    hub.add("someone/sharded", GOLDENS / "qwen3-causal-sharded")
    model = engine.load("someone/sharded")
    local = engine.load(GOLDENS / "qwen3-causal-sharded")
    assert (model.embed("some text") == local.embed("some text")).all()


def test_a_misspelt_name_lists_near_matches(no_hub):
    with pytest.raises(ModelNotFound) as refused:
        engine.load("Qwen/Qwen3-Embeding")
    assert "Qwen/Qwen3-Embedding" in str(refused.value)


def test_plans_of_several_devices_ask_the_hub_once(hub):
    hub.add("someone/model", GOLDENS / "bert-plain")
    one = described("someone/model", profile("m1-8gb"))
    asked = len(hub.requests)
    several = described_on("someone/model", [profile(name) for name in ("m1-8gb", "h200", "cpu")])
    assert len(hub.requests) <= 2 * asked
    assert several[0].weight_bytes == one.weight_bytes
    assert [each.weight_bytes for each in several] == [
        described(str(GOLDENS / "bert-plain"), profile(name)).weight_bytes for name in ("m1-8gb", "h200", "cpu")
    ]


@pytest.mark.parametrize("name", ["qwen3-causal-sharded", "qwen3-4bit", "bert-plain", "embeddinggemma"])
def test_plan_and_info_of_a_hub_id_are_those_of_its_files_and_fetch_no_weights(hub, name):
    hub.add("someone/model", GOLDENS / name)
    where = profile("m4-pro-24gb")

    def plans(model):
        about = described(model, where)
        options = {"cached": 0, "new_tokens": 0, "budget": None, "dense": False}
        return make(about, where, lengths=[100, 7], **options).to_dict()

    def facts(model):
        found = gather(engine.describe(model))
        return {key: value for key, value in found.items() if key not in ("model", "found_in")}

    assert plans("someone/model") == plans(str(GOLDENS / name))
    assert facts("someone/model") == facts(str(GOLDENS / name))
    weights = {path.relative_to(GOLDENS / name).as_posix() for path in (GOLDENS / name).rglob("*.safetensors")}
    asked = {file for file, _ in hub.ranges}
    assert asked
    assert asked <= weights
    # Each description asks anew, as nothing of a weight file is kept.
    assert sum(hub.served[file] for file in asked) <= 4 * len(asked) * 16_384
    model = engine.load("someone/model")
    assert all((engine.describe("someone/model").checkpoint.folder / file).is_file() for file in asked)
    assert model.name == "someone/model"

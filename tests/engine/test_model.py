"""A model as a Python object: copies, pickles, shared weights, closing, counting, awaiting, printing."""

import asyncio
import copy
import gc
import importlib
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.checkpoint import sharing
from archport.contract import InputError

GOLDENS = Path(__file__).parents[1] / "goldens"
TEXTS = ["a text", "another, longer text", ""]


@pytest.fixture(scope="module")
def model():
    return engine.load(GOLDENS / "bert-plain", max_context=64, memory_budget="1GB")


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDENS / "bert-plain", tmp_path / "model"))


def test_a_pickled_model_loads_again_in_another_process_by_name_and_options(model, tmp_path):
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    program = (
        "import archport, pickle, sys, numpy as np\n"
        "model = pickle.load(open(sys.argv[1], 'rb'))\n"
        "np.save(sys.argv[2], model.embed(['a text']))\n"
        "print(model.max_tokens, model.budget)"
    )
    made = tmp_path / "vectors.npy"
    command = [sys.executable, "-c", program, tmp_path / "model.pickle", made]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == [str(model.max_tokens), str(model.budget)]
    assert (np.load(made) == model.embed(["a text"])).all()


def test_a_pickle_holds_no_weights(model):
    assert len(pickle.dumps(model)) < 2000


def test_a_pickled_model_keeps_its_overrides_by_their_modules_names(tmp_path, monkeypatch):
    source = "from archport.contract import hookimpl\n\n@hookimpl\ndef archport_prefill_chunk():\n    return 16\n"
    (tmp_path / "small_chunks_of_overrides.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    chunks = importlib.import_module("small_chunks_of_overrides")
    loaded = pickle.loads(pickle.dumps(engine.load(GOLDENS / "qwen3-embed", overrides=[chunks])))
    assert loaded.recipe.arguments()["overrides"] == (chunks,)
    assert loaded.plan([40]).chunk == 16


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_answers_after_the_original_was_closed(folder, duplicate):
    first = engine.load(folder)
    expected = first.embed(TEXTS)
    second = duplicate(first)
    first.close()
    assert (second.embed(TEXTS) == expected).all()


def test_a_closed_model_says_how_to_get_it_back_and_closes_twice(folder):
    with engine.load(folder) as loaded:
        loaded.embed("a")
    loaded.close()
    for call in (lambda: loaded.embed("a"), lambda: loaded.dimensions, lambda: loaded.plan([3])):
        with pytest.raises(InputError, match=r"was closed; load it again with engine\.load"):
            call()
    assert "bert" in repr(loaded)


def test_equal_loads_share_their_buffers_and_say_so(folder, caplog):
    caplog.set_level("INFO", "archport")
    first = engine.load(folder)
    before = first.memory().process.active
    second = engine.load(folder, max_context=32)
    assert "the weights are shared" in caplog.text
    assert second.memory().process.active - before < first.memory().weights / 4
    assert (first.embed(TEXTS) == second.embed(TEXTS)).all()


@pytest.mark.parametrize("options", [{"share_weights": False}, {"dtype": "bfloat16"}])
def test_loads_that_ask_for_weights_of_their_own_or_another_type_share_nothing(folder, options, caplog):
    first = engine.load(folder)
    caplog.set_level("INFO", "archport")
    engine.load(folder, **options)
    assert "shared" not in caplog.text
    assert first.embed("a").any()


def test_weights_that_were_written_again_are_read_again(folder, caplog):
    first = engine.load(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes())
    caplog.set_level("INFO", "archport")
    engine.load(folder)
    assert "shared" not in caplog.text
    assert first.embed("a").any()


def test_a_weight_replaced_in_one_model_changes_no_other(folder):
    first, second = engine.load(folder), engine.load(folder)
    expected = first.embed(TEXTS)
    words = second._runtime.encoder.trunk.embeddings.word_embeddings
    words.weight = words.weight * 0 + 1
    words.weight[0] = 3
    assert not (second.embed(TEXTS) == expected).all()
    assert (first.embed(TEXTS) == expected).all()
    assert (engine.load(folder).embed(TEXTS) == expected).all()


GROWTH = """
import gc, sys
from archport import engine
def used(): return int(open("/proc/self/statm").read().split()[1]) * 4096
def load(times):
    for _ in range(times):
        engine.load(sys.argv[1])
    gc.collect()
load(40)
before = used()
load(100)
print(used() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_again_and_again_takes_no_memory(folder):
    ended = subprocess.run([sys.executable, "-c", GROWTH, str(folder)], capture_output=True, text=True)
    # 7 MB where the keys of first weights stay.
    assert int(ended.stdout) < 2_500_000, ended.stderr


def test_shared_weights_are_freed_with_the_last_model(folder):
    def kept() -> int:
        gc.collect()
        return sharing.count()

    before = kept()
    models = [engine.load(folder), engine.load(folder)]
    assert kept() == before + 1
    models.pop().close()
    assert kept() == before + 1
    models.pop().close()
    assert kept() == before


def test_counts_are_the_tokens_that_a_plan_computes(model):
    model.embed(TEXTS)
    lengths = [length for batch in model.last_plan.batches for length in batch.lengths]
    assert sorted(model.count_tokens(TEXTS)) == sorted(lengths)
    assert model.count_tokens("a", prompt="b b ")[0] == model.count_tokens("b b a")[0]


def test_texts_over_the_limit_are_counted_whole(model):
    (count,) = model.count_tokens("a " * 5000)
    assert count == 5002


def test_changing_the_tokenizer_changes_no_answer(model):
    expected = model.count_tokens(TEXTS)
    model.tokenizer.enable_truncation(3)
    model.tokenizer.add_tokens(["another"])
    assert (model.count_tokens(TEXTS) == expected).all()


def test_the_event_loop_runs_on_while_texts_are_embedded(model, monkeypatch):
    threads, ticked = [], threading.Event()
    embed = type(model).embed

    def slow(self, *args, **options):
        threads.append(threading.current_thread())
        # A loop that this held up would never tick.
        assert ticked.wait(60)
        return embed(self, *args, **options)

    monkeypatch.setattr(type(model), "embed", slow)

    async def main():
        task = asyncio.create_task(model.aembed(TEXTS))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
            if ticks > 5:
                ticked.set()
        return await task, ticks

    vectors, ticks = asyncio.run(main())
    assert ticks > 5
    assert threads[0] is not threading.main_thread()
    monkeypatch.undo()
    assert (vectors == model.embed(TEXTS)).all()


def test_async_twins_answer_as_the_calls_do(model):
    async def main():
        return await asyncio.gather(model.aencode_query("a", dimensions=8), model.aencode_document(["b", "c"]))

    query, documents = asyncio.run(main())
    assert (query == model.encode_query("a", dimensions=8)).all()
    assert (documents == model.encode_document(["b", "c"])).all()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("batch_size", "archport plans its batches"),
        ("show_progress_bar", "progress=True"),
        ("normalize_embeddings", "normalize=True"),
        ("convert_to_tensor", "torch.from_numpy"),
        ("device", "MLX chooses it"),
        ("truncate_dim", "dimensions="),
    ],
)
@pytest.mark.parametrize("method", ["embed", "encode_query", "encode_document"])
def test_an_argument_of_sentence_transformers_spelling_is_refused_with_archports_word(model, method, name, word):
    with pytest.raises(InputError, match=rf"^{name}= is no argument of archport's; .*{word}"):
        getattr(model, method)("a", **{name: 1})


def test_loading_and_generating_refuse_other_spellings_too():
    with pytest.raises(InputError, match="no code of a repository is run"):
        engine.load("anything", trust_remote_code=True)
    with pytest.raises(InputError, match=r"max_new_tokens= .* write max_tokens="):
        engine.load(GOLDENS / "qwen3-windowed").generate("the", max_new_tokens=3)


def test_maxsim_is_refused_where_no_late_interaction_is_declared(model):
    with pytest.raises(InputError, match="declare no late interaction"):
        model.maxsim("a", ["b"])


def test_a_plan_prints_as_its_explanation_and_shows_itself_shortly(model):
    plan = model.plan([5, 9])
    assert str(plan) == plan.explain()
    assert repr(plan) == f"<plan of 2 rows in 1 batches for bert on {model.device.name}>"
    assert plan.explain().splitlines()[0].split(",")[0] in plan._repr_html_()
    assert f"<td>{model.name}</td>" in model._repr_html_()

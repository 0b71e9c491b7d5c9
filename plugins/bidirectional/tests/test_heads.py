"""Labels, pairs, masked words and vectors per token against transformers and sentence-transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from archport import engine
from archport.contract import CheckpointError, ContextLengthExceeded, InputError
from archport.loading import describe

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
CLASSIFIERS = ("bert-classify", "xlm-roberta-rerank", "modernbert-rerank", "llama-bidirec-rerank")
MASKED = ("bert-prefixed", "xlm-roberta", "roberta", "modernbert")


def relative(got, want):
    return float(np.abs(np.array(got) - want).max() / np.abs(want).max())


@pytest.fixture(scope="module")
def models():
    loaded = {}

    def get(name):
        if name not in loaded:
            loaded[name] = engine.load(GOLDENS / name)
        return loaded[name]

    return get


def recorded(name):
    stored = json.loads((GOLDENS / name / "texts.json").read_text())
    return stored, np.load(GOLDENS / name / "golden.npz")


def raw(found):
    return np.array([list(each.scores.values()) for each in found])


@pytest.mark.parametrize("what", ["texts", "pairs"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_raw_scores_of_labels_equal_transformers_in_a_batch(models, name, what):
    stored, golden = recorded(name)
    items = [tuple(item) if what == "pairs" else item for item in stored[what]]
    assert relative(raw(models(name).classify(items, raw_scores=True)), golden[what]) <= 1e-5


def test_labels_have_their_names_and_probabilities_that_sum_to_one(models):
    (found,) = models("bert-classify").classify("a cat sat on the mat.")
    assert list(found.scores) == ["contradiction", "entailment", "neutral"]
    assert abs(sum(found.scores.values()) - 1) <= 1e-6
    assert found.score == max(found.scores.values()) == found.scores[found.label]


def test_labels_of_one_name_keep_their_own_scores(models, tmp_path):
    shutil.copytree(GOLDENS / "bert-classify", tmp_path / "same")
    path = tmp_path / "same" / "config.json"
    stated = {**json.loads(path.read_text()), "id2label": {"0": "yes", "1": "no", "2": "yes"}}
    path.write_text(json.dumps(stated))
    text = "a cat sat on the mat."
    (found,), (want,) = engine.load(tmp_path / "same").classify([text]), models("bert-classify").classify([text])
    assert list(found.scores) == ["yes (0)", "no", "yes (2)"]
    assert list(found.scores.values()) == list(want.scores.values())
    assert found.score == found.scores[found.label]


@pytest.mark.parametrize("name", ["xlm-roberta-rerank", "modernbert-rerank"])
def test_scores_of_pairs_equal_cross_encoder_with_its_activation(models, name):
    stored, golden = recorded(name)
    query = stored["pairs"][0][0]
    documents = [document for first, document in stored["pairs"] if first == query]
    found = models(name).rerank(query, documents)
    by_index = np.array([each.score for each in sorted(found, key=lambda each: each.index)])
    assert relative(by_index, golden["predicted"][: len(documents)].reshape(-1)) <= 1e-5
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_raw_scores_of_a_ranking_are_the_logits(models):
    stored, golden = recorded("xlm-roberta-rerank")
    query = stored["pairs"][0][0]
    documents = [document for first, document in stored["pairs"] if first == query]
    found = models("xlm-roberta-rerank").rerank(query, documents, raw_scores=True)
    by_index = [each.score for each in sorted(found, key=lambda each: each.index)]
    assert relative(by_index, golden["pairs"][: len(documents), 0]) <= 1e-5


def test_the_llama_reranker_reads_the_published_text_and_divides_by_its_temperature(models):
    stored, golden = recorded("llama-bidirec-rerank")
    query = stored["pairs"][0][0]
    documents = [document for first, document in stored["pairs"] if first == query]
    found = models("llama-bidirec-rerank").rerank(query, documents, raw_scores=True)
    by_index = [each.score for each in sorted(found, key=lambda each: each.index)]
    assert relative(by_index, golden["templated"][: len(documents), 0]) <= 1e-5


def test_two_labels_rank_by_the_second_and_three_are_no_order(models, tmp_path):
    with pytest.raises(InputError, match=r"3 labels.*classify"):
        models("bert-classify").rerank("a", ["b"])
    import mlx.core as mx

    folder = shutil.copytree(GOLDENS / "bert-classify", tmp_path / "two")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "no", "1": "yes"}}))
    weights = dict(mx.load(str(folder / "model.safetensors")))
    weights |= {name: weights[name][:2] for name in ("classifier.weight", "classifier.bias")}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    model = engine.load(folder)
    documents = ["a cat", "the mat, and a longer text", "b"]
    ranked = {each.index: each.score for each in model.rerank("a", documents)}
    classes = model.classify([("a", document) for document in documents])
    assert [ranked[i] for i in range(3)] == pytest.approx([each.scores["yes"] for each in classes], abs=1e-6)


def test_a_pair_tells_its_texts_apart_by_their_types(models):
    import mlx.core as mx

    stored, golden = recorded("bert-classify")
    model, pair = models("bert-classify"), tuple(stored["pairs"][0])
    tokeniser = model._runtime.labels().tokeniser
    (ids,), (types,) = tokeniser([pair])
    assert set(types.tolist()) == {0, 1}
    hidden = np.array(model.forward(ids[None]))[0, :1]
    blind = np.array(model._runtime.encoder.trunk.scores(mx.array(hidden)))
    assert relative(blind[0], golden["pairs"][0]) > 1e-3


def test_a_pair_over_the_limit_is_refused_or_cut_on_request(models):
    model = models("xlm-roberta-rerank")
    long = "a " * 400
    with pytest.raises(ContextLengthExceeded, match="document 1"):
        model.rerank("a query", ["short", long])
    cut = model.rerank("a query", ["short", long], overflow="truncate")
    assert np.isfinite([each.score for each in cut]).all()


@pytest.mark.parametrize("call", ["embed", "similarity"])
def test_a_classifier_says_that_it_makes_no_vectors(models, call):
    with pytest.raises(InputError, match=r"Model\.classify"):
        models("bert-classify").embed("a") if call == "embed" else models("bert-classify").similarity(
            np.ones((1, 2)), np.ones((1, 2))
        )


def test_an_embedder_says_that_it_knows_no_labels_and_fills_no_masks(models):
    with pytest.raises(InputError, match="no labels"):
        models("llama-bidirec").classify("a")
    with pytest.raises(InputError, match="fills no masks"):
        models("llama-bidirec").fill_mask("a")


@pytest.mark.parametrize("name", ["xlm-roberta", "roberta", "modernbert"])
def test_logits_of_masked_places_equal_transformers(models, name):
    import mlx.core as mx

    golden = np.load(GOLDENS / name / "golden.npz")
    model = models(name)
    hidden = model.forward(golden["masked_ids"][None])[0, [4, 20]]
    logits = np.array(model._runtime.encoder.trunk.logits(hidden).astype(mx.float32))
    assert relative(logits, golden["masked_logits"]) <= 1e-5


@pytest.mark.parametrize("name", MASKED)
def test_masked_words_are_filled_by_the_likeliest_tokens_of_each_place(models, name):
    import mlx.core as mx

    model = models(name)
    mask = model._runtime.tokeniser.tokenizer.id_to_token(model._runtime.mask)
    texts = [f"a {mask} sat on the {mask}.", f"{mask} is here, and this text is longer than the others", f"the {mask}"]
    found = model.fill_mask(texts, top_k=3)
    assert [len(places) for places in found] == [2, 1, 1]
    for text, places in zip(texts, found, strict=True):
        ids = model._runtime.tokeniser([text]).ids[0]
        at = np.flatnonzero(ids == model._runtime.mask)
        rows = model.forward(ids[None])[0, mx.array(at)]
        chances = np.array(mx.softmax(model._runtime.encoder.trunk.logits(rows), axis=-1))
        for place, row in zip(places, chances, strict=True):
            assert [each.token_id for each in place] == np.argsort(-row)[:3].tolist()
            assert [each.score for each in place] == pytest.approx(np.sort(row)[::-1][:3].tolist(), rel=1e-4)


def test_a_text_without_a_mask_and_a_count_beyond_the_vocabulary_are_refused(models):
    with pytest.raises(InputError, match=r"text 1.*<mask>"):
        models("xlm-roberta").fill_mask(["a <mask>", "none"])
    with pytest.raises(InputError, match="top_k=0"):
        models("xlm-roberta").fill_mask("a <mask>", top_k=0)


@pytest.fixture(scope="module")
def interacting(models, tmp_path_factory):
    """Late interaction in its published layouts: Stanford's, PyLate's, and what sentence-transformers saves of that."""

    def get(layout):
        if layout != "saved again":
            return models(layout)
        folder = tmp_path_factory.mktemp("models") / "again"
        if not folder.exists():
            shutil.copytree(GOLDENS / "pylate", folder)
            for path, value in json.loads((folder / "golden.json").read_text())["native"].items():
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_text(json.dumps(value))
        return engine.load(folder)

    return get


LAYOUTS = ("colbert", "pylate", "saved again")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_of_every_token_equal_sentence_transformers_with_markers_filling_and_skipped_words(interacting, layout):
    stored, golden = recorded("colbert" if layout == "colbert" else "pylate")
    model = interacting(layout)
    # Together, so that they share batches and their padding; a query over the published length is cut there.
    queries = model.encode_query(stored["queries"], output="tokens", overflow="truncate")
    documents = model.encode_document(stored["documents"], output="tokens")
    for kind, found in (("query", queries), ("document", documents)):
        for index, vectors in enumerate(found):
            assert vectors.shape == golden[f"{kind}_{index}"].shape
            assert relative(vectors, golden[f"{kind}_{index}"]) <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maxsim_counts_no_padding_and_equals_the_reference(interacting, layout):
    stored, golden = recorded("colbert" if layout == "colbert" else "pylate")
    model = interacting(layout)
    for index, query in enumerate(stored["queries"]):
        if layout == "colbert" or index == 0:
            assert relative(model.maxsim(query, stored["documents"]), golden["maxsim"][index]) <= 1e-5
        vectors = [golden[f"document_{i}"] for i in range(len(stored["documents"]))]
        assert relative(model.maxsim(golden[f"query_{index}"], vectors), golden["maxsim"][index]) <= 1e-5


def test_a_query_longer_than_published_is_refused_unless_it_may_be_cut(models):
    stored, _ = recorded("pylate")
    with pytest.raises(ContextLengthExceeded, match="24"):
        models("pylate").maxsim(stored["queries"][1], stored["documents"])
    with pytest.raises(ContextLengthExceeded, match="the query"):
        models("pylate").rerank(stored["queries"][1], stored["documents"])
    long = {"overflow": "truncate"}
    assert models("pylate").rerank(stored["queries"][1], stored["documents"], **long)[0].index == 0


def test_pylate_without_words_of_its_own_skips_punctuation_and_fills_queries(tmp_path):
    from archport.engine import describe

    folder = shutil.copytree(GOLDENS / "pylate", tmp_path / "bare")
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    kept = ("prompts", "query_prefix", "document_prefix", "model_type")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({key: settings[key] for key in kept}))
    about = describe(folder)
    head = about.hooks.head(about.spec, about.checkpoint)
    assert {about.checkpoint.token_id(mark) for mark in ",.!"} <= set(head.skipped)
    assert about.checkpoint.token_id("the") not in head.skipped
    assert (head.expansion.length, head.query_tokens) == (32, 32)


def test_a_token_of_late_interaction_beyond_the_vocabulary_is_refused_when_the_model_is_loaded(tmp_path):
    """Only the tokenizer was given it, so no row of the table is its own."""
    folder = shutil.copytree(GOLDENS / "pylate", tmp_path / "far")
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer, settings = (
        json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": vocabulary, "content": "<fill>", "special": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "mask_token": "<fill>"}))
    with pytest.raises(
        CheckpointError, match=f"token id {vocabulary}; the model's vocabulary has {vocabulary} entries"
    ):
        engine.load(folder)


def test_a_negative_maxsim_stays_negative_beside_longer_documents():
    from archport.answering.token_vectors import maxsim

    query = np.array([[1.0, 0.0]], np.float32)
    away = np.array([[-1.0, 0.0]], np.float32)
    assert maxsim(query, [away, np.repeat(away, 9, axis=0)]).tolist() == [-1.0, -1.0]


def test_late_interaction_ranks_documents(models):
    stored, golden = recorded("colbert")
    found = models("colbert").rerank(stored["queries"][0], stored["documents"])
    assert [each.index for each in found] == np.argsort(-golden["maxsim"][0], kind="stable").tolist()


def test_an_embedder_gives_its_hidden_states_per_token(models):
    model = models("llama-bidirec")
    texts = ["a cat", "a longer text than that"]
    for text, vectors in zip(texts, model.embed(texts, output="tokens"), strict=True):
        ids = model._runtime.tokeniser([text]).ids[0]
        assert relative(vectors, np.array(model.forward(ids[None])[0])) <= 1e-5


def test_arguments_that_mean_nothing_for_tokens_are_refused(models):
    with pytest.raises(InputError, match="dimensions"):
        models("colbert").embed("a", output="tokens", dimensions=4)
    with pytest.raises(InputError, match="output='rows'"):
        models("colbert").embed("a", output="rows")


NUMBERED = ["input_ids", "token_type_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("golden", "types", "inputs", "typed"),
    [
        ("bert-classify", 2, NUMBERED, True),
        ("bert-classify", 1, NUMBERED, False),
        ("bert-classify", 2, ["input_ids"], False),
        ("bert-classify", 2, None, False),
        ("xlm-roberta-rerank", 2, NUMBERED, True),
        ("xlm-roberta-rerank", 2, None, False),
    ],
)
def test_pairs_have_types_where_the_tokenizer_numbers_them_and_the_model_has_two(
    tmp_path, golden, types, inputs, typed
):
    folder = shutil.copytree(GOLDENS / golden, tmp_path / golden)
    for name, keys in (("config.json", {"type_vocab_size": types}), ("tokenizer_config.json", {})):
        stated = json.loads((folder / name).read_text()) | keys
        stated.pop("model_input_names", None)
        if name == "tokenizer_config.json" and inputs is not None:
            stated["model_input_names"] = inputs
        (folder / name).write_text(json.dumps(stated))
    about = describe(folder)
    assert about.hooks.head(about.spec, about.checkpoint).token_types is typed

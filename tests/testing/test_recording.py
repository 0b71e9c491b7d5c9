"""`archport record` and the golden file: what is written and read, and what is said where there is no reference."""

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from archport.contract import InputError
from archport.testing import parametrize_conformance, run_checks
from archport.testing.finding import find, release, subject_of
from archport.testing.recorded import GoldenFile, read_golden, write_golden
from archport.testing.recording import record
from archport.testing.reference import tokenised
from archport.testing.runner import goldens

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
# The Python of `make goldens`.
REFERENCE = Path(os.environ.get("ARCHPORT_REFERENCE_PYTHON", ROOT / ".venv-goldens" / "bin" / "python"))
needs_torch = pytest.mark.skipif(not REFERENCE.exists(), reason="needs the environment of `make goldens`")


@pytest.fixture(scope="module")
def generates(load_kit):
    return load_kit("honest_toys").GENERATES


@pytest.fixture(scope="module")
def case(load_kit, generates):
    """What the honest toy that generates computes."""
    return load_kit("references").recorded(subject_of(find(generates)).tinies[0])


def of_examples(file, *cases, **more):
    write_golden(file, GoldenFile(cases, {"of": "toys"}, of_examples=True, **more))
    return file


def statuses(module, file, **options):
    return {each.check.name: each for each in run_checks(module, tier="golden", golden=file, **options)}


def test_a_golden_file_is_read_as_it_was_written(case, tmp_path):
    write_golden(
        tmp_path / "new" / "golden.npz", GoldenFile((case,), {"date": "today"}, {"other": "why"}, of_examples=True)
    )
    read = read_golden(tmp_path / "new" / "golden.npz")
    (back,) = read.cases
    assert (read.provenance, read.left_out, read.of_examples) == ({"date": "today"}, {"other": "why"}, True)
    assert (back.texts, back.name, back.fingerprint) == (case.texts, case.name, case.fingerprint)
    assert all(np.array_equal(one, other) for one, other in zip(back.ids, case.ids, strict=True))
    assert all(np.array_equal(one, other) for one, other in zip(back.hidden, case.hidden, strict=True))
    for name in ("logits", "greedy", "margins"):
        assert np.array_equal(getattr(back, name), getattr(case, name))
    assert back.vectors is None


@pytest.mark.parametrize("name", ["golden", "vectors"])
def test_a_file_of_texts_and_vectors_alone_is_compared_by_either_name(load_kit, tmp_path, name):
    tiny = subject_of(find(load_kit("honest_toys").DECODES)).tinies[0]
    np.savez(tmp_path / "old.npz", texts=np.array(["abc", "de"]), vectors=tiny.model.embed(["abc", "de"]))
    found = run_checks(
        load_kit("honest_toys").DECODES, tier="golden", model=str(tiny.folder), **{name: tmp_path / "old.npz"}
    )
    assert {each.check.name for each in found if each.status == "ok"} == {
        *("golden_vectors_match", "golden_vectors_repeat", "golden_batch_invariance")
    }
    assert not [each for each in found if each.status == "fail"]


def test_examples_are_compared_without_a_model_and_one_without_a_reference_says_why(generates, case, tmp_path):
    found = statuses(generates, of_examples(tmp_path / "golden.npz", case))
    assert found["golden_greedy_tokens_match"].status == "ok"
    assert "18 tokens after 3 texts" in found["golden_greedy_tokens_match"].message
    assert "the tiny tier checks this" in found["golden_vectors_repeat"].message
    file = of_examples(tmp_path / "other.npz", left_out={case.name: "transformers does not load it"})
    found = statuses(generates, file)
    assert {each.status for each in found.values()} == {"not applicable"}
    assert "no reference: transformers does not load it" in found["golden_hidden_states_match"].message


def test_another_token_where_the_reference_is_as_close_as_rounding_is_a_tie(generates, case, tmp_path):
    greedy = case.greedy.copy()
    greedy[1, 2] = (greedy[1, 2] + 1) % 199
    margins = case.margins.copy()
    margins[1, 2] = 1e-6
    tied = replace(case, greedy=greedy, margins=margins)
    found = statuses(generates, of_examples(tmp_path / "tie.npz", tied), only=["golden_greedy_tokens_match"])
    assert "14 tokens after 3 texts, 1 texts end in a tie" in found["golden_greedy_tokens_match"].message
    apart = replace(case, greedy=greedy)
    found = statuses(generates, of_examples(tmp_path / "apart.npz", apart), only=["golden_greedy_tokens_match"])
    assert found["golden_greedy_tokens_match"].status == "fail"


def test_a_golden_file_of_something_else_is_refused(generates, case, tmp_path):
    subject = subject_of(find(generates))
    folder = str(subject.tinies[0].folder)
    write_golden(tmp_path / "checkpoint.npz", GoldenFile((case,), {"of": "acme/real"}))
    changed = of_examples(tmp_path / "changed.npz", replace(case, fingerprint="0" * 16 + " 1.5"))
    bare = of_examples(tmp_path / "bare.npz", replace(case, fingerprint=""))
    gone = of_examples(tmp_path / "gone.npz", replace(case, name="an old one"))
    for model, file, message in (
        (None, tmp_path / "checkpoint.npz", "recorded from acme/real; name that checkpoint"),
        (folder, changed, "recorded from examples; leave model"),
        (None, changed, "is not what was recorded any more; record it again"),
        (None, bare, "is not what was recorded any more; record it again"),
        (None, gone, "examples that are gone: an old one"),
    ):
        with pytest.raises(InputError, match=message):
            goldens(subject, model, file)
    with pytest.raises(InputError, match="two names for one file"):
        run_checks(generates, vectors=changed, golden=changed)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"texts": np.array(["a"])}, "damaged .*vectors"),
        ({"texts": np.array(["a", "b"]), "vectors": np.ones((3, 2))}, "2 texts, and rows of"),
        ({"texts": np.array(["a"]), "ids": np.ones(3, np.int32), "lengths": np.array([2])}, "ids of 3 tokens"),
        ({"about": np.array(json.dumps({"format": 9, "cases": []}))}, "is of format 9"),
        ({"about": np.array("[")}, "damaged"),
        ({"about": np.array(json.dumps({"cases": []}))}, "0 cases of one checkpoint"),
        ({"texts": np.array([{}], dtype=object)}, "can't be read"),
    ],
)
def test_a_file_that_is_no_golden_file_is_one_message(tmp_path, arrays, message):
    np.savez(tmp_path / "golden.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_golden(tmp_path / "golden.npz")


def test_a_golden_file_puts_its_checks_into_the_author_s_test(generates, case, tmp_path):
    file = of_examples(tmp_path / "golden.npz", case)
    marked = parametrize_conformance(generates, golden=file, tier="golden")
    checks = {bound.check.name: bound for bound in marked.args[1]}
    assert "18 tokens" in checks["golden_greedy_tokens_match"]()
    assert "golden_token_ids_match" not in {b.check.name for b in parametrize_conformance(generates).args[1]}


def interpreter(folder, body):
    """A program that runs what it is given as Python, behind some lines of its own."""
    program = folder / "python"
    program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('out of luck')", "ended with 1 before the reference was computed: out of luck"),
        ("code = sys.argv[2]; sys.modules['torch'] = None; sys.argv = ['-c', sys.argv[3]]; exec(code)", "has no torch"),
    ],
)
def test_a_python_that_can_t_compute_a_reference_says_why(tmp_path, body, message):
    with pytest.raises(InputError, match=message):
        record(model=GOLDENS / "bert-plain", python=interpreter(tmp_path, body))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to record"),
        ({"model": GOLDENS / "bert-plain", "texts": []}, "expected strings that are not empty"),
        ({"model": GOLDENS / "bert-plain", "new_tokens": 0}, "expected 1 to 1,024"),
        ({"model": GOLDENS / "bert-plain", "python": "/no/python"}, "can't be run"),
    ],
)
def test_what_can_t_be_recorded_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        record(**options)


# Stands in for a Python with torch: arrays of the right shapes, by the request's own texts.
COMPUTES = """
import json, os
import numpy as np
folder = os.path.dirname(sys.argv[3])
(case,) = json.load(open(sys.argv[3]))
texts = case["texts"]
np.savez(os.path.join(folder, "0.npz"), texts=np.array(texts), ids=np.ones(len(texts), np.int32),
         lengths=np.ones(len(texts), np.int32), hidden=np.zeros((len(texts), 4), np.float32))
report = {"versions": {"torch": "9"}, "cases": [{"class": "Acme"}]}
json.dump(report, open(os.path.join(folder, "report.json"), "w"))
assert "archport" not in os.environ.get("PYTHONPATH", "")
"""


def test_what_another_python_computes_is_kept_with_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/archport")
    golden = record(
        model=GOLDENS / "bert-plain", python=interpreter(tmp_path, COMPUTES), texts=["one", "two"], command="a command"
    )
    assert golden.cases[0].texts == ("one", "two")
    about = golden.provenance
    assert (about["command"], about["versions"], about["classes"]) == ("a command", {"torch": "9"}, ["Acme"])
    assert about["of"].endswith("bert-plain")
    assert about["date"].startswith("20")


def test_a_reference_shortens_texts_that_have_more_tokens_than_fit():
    def tokenizer(text):
        return {"input_ids": [1, *map(ord, text)]}

    texts, rows = tokenised(tokenizer, ["ab", "a long text", "", "ab"], 5)
    assert texts == ["ab", "a lo", ""]
    assert [len(row) for row in rows] == [3, 5, 1]


@needs_torch
@pytest.mark.truth
def test_what_transformers_computes_of_a_checkpoint_is_recorded_and_met(tmp_path):
    golden = record(
        model=GOLDENS / "qwen3-reranker", python=str(REFERENCE), texts=["abc", "A longer text."], command="c"
    )
    assert set(golden.provenance) >= {"date", "command", "versions", "classes", "of"}
    assert golden.provenance["classes"] == ["Qwen3ForCausalLM"]
    write_golden(tmp_path / "golden.npz", golden)
    found = run_checks("qwen3", tier="golden", model=str(GOLDENS / "qwen3-reranker"), golden=tmp_path / "golden.npz")
    assert {each.check.name for each in found if each.status == "ok"} == {
        *("golden_token_ids_match", "golden_hidden_states_match"),
        *("golden_logits_match", "golden_greedy_tokens_match"),
    }
    assert not [each for each in found if each.status == "fail"]


@needs_torch
@pytest.mark.truth
@pytest.mark.parametrize("name", ["embeddinggemma", "modernbert-rerank", "qwen35-text", "bert-prefixed"])
def test_checkpoints_of_other_families_meet_what_is_recorded_of_them(tmp_path, name):
    golden = record(model=GOLDENS / name, python=str(REFERENCE))
    write_golden(tmp_path / "golden.npz", golden)
    plugin = "qwen35" if name.startswith("qwen35") else "bidirectional"
    found = run_checks(plugin, tier="golden", model=str(GOLDENS / name), golden=tmp_path / "golden.npz")
    assert {each.check.name: each.message for each in found if each.status == "fail"} == {}
    assert sum(each.status == "ok" for each in found) >= 3


@needs_torch
@pytest.mark.truth
def test_a_plugin_s_examples_meet_what_is_recorded_of_them_and_unknown_ones_are_left_out(toy, tmp_path):
    golden = record("qwen3", python=str(REFERENCE))
    assert golden.left_out == {}
    write_golden(tmp_path / "golden.npz", golden)
    found = run_checks("qwen3", tier="golden", golden=tmp_path / "golden.npz")
    assert {each.check.name: each.message for each in found if each.status == "fail"} == {}
    assert {each.check.name for each in found if each.status == "ok"} >= {"golden_greedy_tokens_match"}
    with pytest.raises(InputError, match=r"there is no reference: transformers .* does not load it"):
        record(toy, python=str(REFERENCE))
    release(find(toy))

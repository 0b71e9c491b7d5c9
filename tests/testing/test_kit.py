"""The kit's two front ends and its rules: known failures are strict, reports say what to do, authors need one file."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest
from tolerances import DEVICE
from typer.testing import CliRunner

from archport import testing
from archport.cli.commands import app
from archport.contract import AttentionCall, InputError, MaskPolicy, masks
from archport.planning import steps
from archport.testing import BAD, CHECKS, floor, parametrize_conformance, run_checks
from archport.testing.checks import batches
from archport.testing.finding import find, release
from archport.testing.report import as_markdown, as_text
from archport.testing.runner import run_check
from archport.testing.subject import Subject

HERE = str(Path(__file__).parent)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, *(path for path in sys.path if path)])}


def named(liars, breaks):
    return next(liar.module for liar in liars if liar.breaks == breaks)


def only(module, check, **options):
    (outcome,) = run_checks(module, only=[check], **options)
    return outcome


def archport(*arguments, cwd=None):
    command = [sys.executable, "-c", "from archport.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, timeout=300)


def pytest_run(folder, source):
    (folder / "test_acme.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acme.py", "-rA"]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=folder, timeout=300)


def test_a_known_failure_that_fails_is_reported_as_known_with_its_reason(liars):
    outcome = only(
        named(liars, "compile_safe"), "compile_safe", known_failures={"compile_safe": "acme#7: reads a value"}
    )
    assert outcome.status == "known failure"
    assert "acme#7" in outcome.message
    assert "compiling a pass" in outcome.message


@pytest.mark.parametrize("name", ["toy", "liars"])
def test_without_a_compiler_a_trace_is_exported(name, request, monkeypatch):
    monkeypatch.setattr(batches, "compile_traces", lambda: False)
    plugin = request.getfixturevalue(name)
    outcome = only(plugin if name == "toy" else named(plugin, "compile_safe"), "compile_safe")
    assert (outcome.status == "ok") == (name == "toy")


# The second makes copies in order, which no file of MLX can hold.
@pytest.mark.parametrize("function", [lambda x: x + 1, lambda x: mx.contiguous(x.T) + 1])
def test_without_a_compiler_what_can_be_traced_gives_its_numbers(function, monkeypatch):
    monkeypatch.setattr(batches, "compile_traces", lambda: False)
    x = mx.arange(6).reshape(2, 3)
    assert mx.array_equal(batches._in_one_trace(function, x), function(x)).item()


def test_without_a_compiler_what_reads_a_value_is_found(monkeypatch):
    monkeypatch.setattr(batches, "compile_traces", lambda: False)
    with pytest.raises(ValueError, match="eval"):
        batches._in_one_trace(lambda x: mx.contiguous(x.T) + x.sum().item(), mx.arange(6).reshape(2, 3))


def test_a_known_failure_that_passes_is_a_failure(toy):
    outcome = only(toy, "compile_safe", known_failures={"compile_safe": "acme#7: reads a value"})
    assert outcome.status == "unexpected pass"
    assert "remove the entry" in outcome.message


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"compile_sane": "acme#7"}, "'compile_sane', which is no check; known: .*compile_safe"),
        ({"compile_safe": " "}, "expected the reason"),
        ({"compile_safe": None}, "expected the reason"),
        ({"spec_matches_config": "acme#8"}, "can't be excused"),
        ({"published_checkpoint_loads": "acme#9"}, "can't be excused"),
    ],
)
def test_a_known_failure_without_a_check_or_a_reason_stops_the_collection(known, message):
    with pytest.raises(InputError, match=message):
        parametrize_conformance("toy", known_failures=known)


def test_a_check_that_does_not_apply_says_what_was_declared(toy):
    outcome = only(toy, "chunked_prefill_equals_whole")
    assert [part.status for part in outcome.parts] == ["ok", "not applicable", "ok"]
    assert "declared bidirectional" in outcome.parts[1].message


def test_a_declared_tower_puts_an_image_between_the_texts_of_the_state_check(toy, toy_vision):
    assert only(toy_vision.honest(), "no_state_between_calls").message.endswith("6, padded, 6 tokens, 1 image: equal")
    assert "no vision tower: equal" in only(toy, "no_state_between_calls").message


def test_a_declared_tower_without_a_reader_of_images_fails_the_state_check(toy_vision):
    outcome = only(toy_vision.without_a_reader(), "no_state_between_calls")
    assert outcome.status == "fail"
    assert "declares a vision tower, but an image of 24 x 16 pixels is refused" in outcome.message


def test_every_check_states_its_rule_what_to_do_and_a_figure(honest):
    for outcome in honest:
        assert outcome.check.rule.endswith("."), outcome.check.name
        assert len(outcome.check.advice) > 20, outcome.check.name
        assert all(any(letter.isdigit() for letter in part.message) for part in outcome.parts if part.status == "ok")


def test_an_example_that_does_not_load_is_one_failure_and_the_rest_waits(liars):
    module = ModuleType("halfway")
    for name, value in vars(named(liars, "compile_safe")).items():
        setattr(module, name, value)

    def archport_build(spec, config):
        raise KeyError("rope_theta")

    from archport.contract import hookimpl

    module.archport_build = hookimpl(archport_build)
    found = run_checks(module, tier="tiny")
    assert [outcome.check.name for outcome in found if outcome.status == "fail"] == ["published_checkpoint_loads"]
    assert {outcome.status for outcome in found} == {"fail", "blocked"}
    text = as_text(found)
    assert "archport_build" in text
    assert "rope_theta" in text
    assert "test_kit.py" in text
    assert len(text.splitlines()) < 20


def test_a_failure_is_shown_with_rule_reason_place_and_advice(liars):
    text = as_text([only(named(liars, "flags_change_the_semantics"), "flags_change_the_semantics")])
    for word in ("FAIL  flags_change_the_semantics", "what", "why", "still declared causal", "where", "do", "causal"):
        assert word in text
    assert "lies.py" in text


def test_the_table_has_a_row_per_check_and_a_column_per_plugin(toy):
    found = run_checks(toy, tier="contract")
    table = as_markdown({"toy": found, "again": found})
    assert table.splitlines()[0] == "| check | toy | again |"
    assert sum(line.startswith("| `") for line in table.splitlines()) == len(found)


def test_the_golden_tier_without_a_model_and_an_unknown_tier_are_refused(toy):
    with pytest.raises(InputError, match="name a model"):
        run_checks(toy, tier="golden")
    with pytest.raises(InputError, match="expected one of contract, tiny, golden"):
        run_checks(toy, tier="quick")


def test_the_kit_needs_no_pytest():
    code = "import sys; import archport.testing as t; print(len(t.CHECKS), 'pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.split() == [str(len(CHECKS)), "False"]


BROKEN = """
from archport.contract import hookimpl
import toy
from toy import archport_build, archport_examples

@hookimpl
def archport_claim(config):
    decoder = config.get("architectures") == ["ToyDecoder"]
    return toy.archport_claim({**config, "causal": True} if decoder else config)
"""


def test_a_broken_plugin_ends_the_command_with_1_and_one_screen(tmp_path):
    (tmp_path / "acme.py").write_text(BROKEN)
    done = archport("check", "acme", "--tier", "contract", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert 5 < len(lines) <= 40
    assert any(line.startswith("FAIL  flags_change_the_semantics") for line in lines)
    for word in ("  what ", "  why ", "  where ", "  do "):
        assert any(line.startswith(word) for line in lines)
    assert "acme.py:" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_plugin_that_does_not_load_says_why_and_ends_with_1(tmp_path):
    (tmp_path / "acme.py").write_text("def archport_claim(config):\n    return None\n")
    done = archport("check", "acme", cwd=tmp_path)
    assert done.returncode == 1
    assert "put @hookimpl above it" in done.stdout


def test_a_sound_plugin_ends_with_0_and_its_figures_in_json():
    done = archport("check", "toy", "--tier", "contract", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["message"] and row["rule"] for row in rows)


def test_only_the_checks_that_are_named_run():
    done = archport("check", "toy", "--only", "hooks_match_the_contract", "--only", "example_is_small", "--json")
    assert [row["check"] for row in json.loads(done.stdout)] == ["hooks_match_the_contract", "example_is_small"]


def test_what_ran_is_recorded_and_less_of_it_is_told_with_the_reason(honest, tmp_path):
    file = tmp_path / "ran.json"
    assert floor.compare(honest, file) == []
    floor.record(honest, file)
    assert floor.compare(honest, file) == []
    fewer = [replace(each, status="not applicable", parts=()) if "head" in each.check.name else each for each in honest]
    told = floor.compare(fewer, file)
    assert len(told) == 2
    assert "logits_are_those_of_the_head ran on 0 examples, on 1 in the recorded run" in told[0]
    file.write_text("[]")
    with pytest.raises(InputError, match="is no record of a run"):
        floor.compare(honest, file)


def test_the_command_records_what_ran_and_fails_where_less_does(honest, tmp_path, monkeypatch):
    outcomes = [honest]
    monkeypatch.setattr(testing, "run_checks", lambda *_, **__: outcomes[-1])
    file = tmp_path / "ran.json"
    run = partial(CliRunner().invoke, app, ["check", "toy", "--recorded", str(file)])
    assert run().exit_code == 0
    written = file.read_text()
    assert run().exit_code == 0
    outcomes.append([each for each in honest if each.check.name != "compile_safe"])
    fewer = run()
    assert fewer.exit_code == 1
    assert "FEWER  compile_safe ran on 0 examples, on 3 in the recorded run" in fewer.output
    assert file.read_text() == written
    for option in (["--only", "compile_safe"], ["--tier", "tiny"]):
        assert CliRunner().invoke(app, ["check", "toy", "--recorded", str(file), *option]).exit_code == 2


def test_a_run_says_how_many_checks_ran_and_how_many_did_not_apply(honest):
    counts = {status: sum(each.status == status for each in honest) for status in ("ok", "not applicable")}
    line = as_text(honest).splitlines()[-1]
    assert f"{counts['ok']} passed" in line
    assert counts["not applicable"] == 0 or f"{counts['not applicable']} not applicable" in line
    assert sum(counts.values()) == len([check for check in CHECKS if check.tier in ("contract", "tiny")])


def test_a_report_says_which_checks_do_not_apply_and_why(liars):
    deaf = next(liar.module for liar in liars if "deaf" in liar.module.__name__)
    text = as_text(run_checks(deaf, only=["chunked_prefill_equals_whole"]))
    assert text.startswith("n/a     declared bidirectional: chunked_prefill_equals_whole")


def test_a_plugin_may_claim_what_another_one_claims_where_one_of_the_two_steps_back(toy, load_kit):
    rival = find(load_kit("lies").plugin("rival"))
    check = next(check for check in CHECKS if check.name == "claims_its_own_and_no_other")
    assert "is claimed by" in run_check(Subject(find(toy), [rival]), check).message
    modest = ModuleType("modest")
    vars(modest).update(vars(rival.module), ARCHPORT_STEPS_BACK=True)
    assert run_check(Subject(find(toy), [replace(rival, module=modest)]), check).status == "ok"
    assert run_check(Subject(replace(rival, module=modest), [find(toy)]), check).status == "ok"
    both = Subject(replace(rival, module=modest), [replace(rival, module=modest)])
    assert run_check(both, check).status == "fail"


def test_what_is_deprecated_is_a_warning_that_is_shown_counted_and_no_failure(liars):
    module = named(liars, "nothing_deprecated_is_used")
    outcome = only(module, "nothing_deprecated_is_used")
    assert outcome.status == "warning" not in BAD
    text = as_text([outcome])
    assert text.startswith("WARN  nothing_deprecated_is_used")
    assert "give every field by name" in " ".join(text.split())
    assert "1 with a warning in" in text.splitlines()[-1]
    assert floor.ran([outcome]) == {"nothing_deprecated_is_used": 1}
    bound = next(each for each in parametrize_conformance(module).args[1] if each.check.name == outcome.check.name)
    with pytest.warns(DeprecationWarning, match="positional arguments"):
        bound()


def test_every_mask_policy_that_the_planner_has_is_taken_in_a_check(toy, load_kit, monkeypatch):
    taken = set()

    class Watched:
        @staticmethod
        def of(layer, policy, *args, **options):
            taken.add(policy)
            return AttentionCall.of(layer, policy, *args, **options)

    monkeypatch.setattr(steps, "AttentionCall", Watched)
    names = ("mask_policies_agree", "batches_decode_as_one_pass")
    for module in (toy, load_kit("honest_kinds").SPANNED):
        release(find(module))
        assert {each.status for each in run_checks(module, only=names)} == {"ok"}
        release(find(module))
    table = {name: value for name, value in vars(masks).items() if isinstance(value, MaskPolicy)}
    # A dense mask is priced for comparison (`archport plan --dense`), and runs where it is pinned.
    # Where a device pads every row, the policies that hide its end are taken instead; on a CPU rows of several lengths
    # are never run one by one, and rows of one length are not padded.
    padded = {"DOCUMENTS"} if DEVICE == "cpu" else {"SHORT", "SPANS"}
    assert {name for name, value in table.items() if value not in taken} - padded == {"DENSE"}


def test_a_name_that_nobody_has_is_one_message():
    done = archport("check", "nobody")
    assert done.returncode == 1
    assert "neither installed nor an importable module" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_author_s_three_lines_run_every_check_and_a_wrong_name_stops_them(tmp_path):
    source = (
        "from archport.testing import parametrize_conformance\n@parametrize_conformance('toy', tier='contract'{})\n"
    )
    source += "def test_conformance(check):\n    check()\n"
    done = pytest_run(tmp_path, source.format(""))
    contract = [check.name for check in CHECKS if check.tier == "contract"]
    assert f"{len(contract)} passed" in done.stdout
    assert all(f"[{name}]" in done.stdout for name in contract)
    done = pytest_run(tmp_path, source.format(", known_failures={'no_such_check': 'acme#1'}"))
    assert done.returncode == 2
    assert "no_such_check" in done.stdout


def test_a_failing_check_fails_its_test_with_the_whole_story(tmp_path):
    (tmp_path / "acme.py").write_text(BROKEN)
    source = "import acme\nfrom archport.testing import parametrize_conformance\n"
    source += "@parametrize_conformance(acme, tier='contract')\ndef test_conformance(check):\n    check()\n"
    done = pytest_run(tmp_path, source)
    assert done.returncode == 1
    assert "FAILED test_acme.py::test_conformance[flags_change_the_semantics]" in done.stdout
    assert "still declared causal" in done.stdout


def test_the_page_of_figures_has_every_check_and_every_liar(liars):
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert [check.name for check in CHECKS if f"| `{check.name}` |" not in page] == []
    assert [liar.lie for liar in liars if " ".join(liar.lie.split()) not in " ".join(page.split())] == []

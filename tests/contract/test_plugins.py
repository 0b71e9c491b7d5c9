"""The loader: each plugin by itself, every fault a row with its reason, two claims an error."""

import pytest

from archport.contract import ClaimError, InputError, PluginError
from archport.contract.plugins import claim, discover, named

CLAIMS = """
@hookimpl
def archport_claim(config):
    return SPEC if config.get("model_type") == "toy" else None
"""


def test_a_sound_plugin_is_found_through_the_entry_point_group(install, mine):
    install("toy", CLAIMS, distribution="archport-acme", version="1.2")
    row = mine()["toy"]
    assert (row.distribution, row.version, row.error) == ("archport-acme", "1.2", None)
    assert row.hook_names == ("archport_claim",)


def test_the_shipped_plugins_are_found_the_same_way(install):
    shipped = {row.name: row for row in discover() if row.distribution == "archport"}
    assert {"qwen3", "bidirectional"} <= set(shipped)
    assert all(row.error is None for row in shipped.values())


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def oops(:", "SyntaxError"),
        ("x = 1", "no function is marked with @hookimpl"),
        (CLAIMS + "def archport_build(spec, config): ...", "archport_build is not marked: put @hookimpl above it"),
        (CLAIMS + "@hookimpl\ndef archport_clam(config): ...", "archport_clam"),
        ("@hookimpl\ndef archport_claim(cfg): ...", "cfg"),
        ("@hookimpl\ndef archport_claim(config=None): ...", "parameter 'config' has a default"),
        ("@hookimpl\ndef archport_claim(*, config): ...", "parameter 'config' is keyword-only"),
        ("@hookimpl\ndef archport_claim(**config): ...", "is variadic keyword"),
        ('@hookimpl(specname="archport_claim")\ndef other(config): ...', "uses specname="),
    ],
)
def test_a_faulty_plugin_is_a_row_with_its_reason_and_stops_no_other(install, mine, source, reason):
    install("bad", source)
    install("good", CLAIMS)
    rows = mine()
    assert reason in rows["bad"].error
    assert rows["good"].error is None


def test_a_name_that_is_taken_becomes_a_row_naming_the_holder(install):
    install("toy", CLAIMS, distribution="archport-a")
    install("toy", CLAIMS, distribution="archport-b")
    rows = [row for row in discover() if row.name == "toy"]
    assert [row.error for row in rows] == [
        None,
        "the name 'toy' is taken by toy (archport-a 0.1); uninstall one of the two",
    ]


def test_a_broken_plugin_does_not_hold_its_name(install):
    install("toy", "import nosuchmodule", distribution="archport-a")
    install("toy", CLAIMS, distribution="archport-b")
    assert [row.error is None for row in discover() if row.name == "toy"] == [False, True]


def test_the_allow_list_chooses_and_an_empty_one_means_none(install, monkeypatch):
    install("one", CLAIMS)
    install("two", CLAIMS)
    monkeypatch.setenv("ARCHPORT_PLUGINS", "two, qwen3")
    assert [row.name for row in discover()] == ["qwen3", "two"]
    monkeypatch.setenv("ARCHPORT_PLUGINS", "")
    assert discover() == ()


def test_strict_raises_the_load_error_naming_plugin_and_distribution(install, monkeypatch):
    install("bad", "import nosuchmodule", distribution="archport-acme", version="3.1")
    monkeypatch.setenv("ARCHPORT_STRICT", "1")
    with pytest.raises(PluginError, match=r"bad \(archport-acme 3\.1\).*did not load.*nosuchmodule"):
        discover()


def test_two_claims_are_an_error_naming_both_with_their_distributions(install):
    install("one", CLAIMS, distribution="archport-a")
    install("two", CLAIMS, distribution="archport-b", version="2")
    with pytest.raises(ClaimError) as refused:
        claim({"model_type": "toy"}, discover())
    text = str(refused.value)
    assert "one (archport-a 0.1), two (archport-b 2)" in text
    assert "engine.load(..., plugin='one')" in text
    assert "ARCHPORT_PREFER=one" in text


def test_the_environment_says_whose_a_config_is_that_several_claim(install, monkeypatch):
    for name in ("one", "two", "three"):
        install(name, CLAIMS)
    monkeypatch.setenv("ARCHPORT_PREFER", "absent, two,one")
    plugin, _ = claim({"model_type": "toy"}, discover())
    assert plugin.name == "two"


def test_a_preference_hides_nobody_who_claims_alone(install, monkeypatch):
    install("one", CLAIMS)
    install("other", "@hookimpl\ndef archport_claim(config): return None")
    monkeypatch.setenv("ARCHPORT_PREFER", "other")
    assert claim({"model_type": "toy"}, discover())[0].name == "one"


def test_a_plugin_that_steps_back_leaves_a_config_to_another_one_and_keeps_it_otherwise(install):
    install("fallback", "ARCHPORT_STEPS_BACK = True\n" + CLAIMS)
    assert claim({"model_type": "toy"}, discover())[0].name == "fallback"
    install("own", CLAIMS)
    assert claim({"model_type": "toy"}, discover())[0].name == "own"
    install("second", "ARCHPORT_STEPS_BACK = True\n" + CLAIMS)
    assert claim({"model_type": "toy"}, discover())[0].name == "own"


def test_two_that_step_back_are_an_error_and_the_user_s_preference_is_first(install, monkeypatch):
    install("one", "ARCHPORT_STEPS_BACK = True\n" + CLAIMS)
    install("two", "ARCHPORT_STEPS_BACK = True\n" + CLAIMS)
    with pytest.raises(ClaimError, match="claimed by 2 plugins"):
        claim({"model_type": "toy"}, discover())
    install("own", CLAIMS)
    monkeypatch.setenv("ARCHPORT_PREFER", "two")
    assert claim({"model_type": "toy"}, discover())[0].name == "two"


def test_stepping_back_is_true_or_false(install, mine):
    install("one", "ARCHPORT_STEPS_BACK = 'yes'\n" + CLAIMS)
    assert "ARCHPORT_STEPS_BACK is 'yes'; expected True or False" in mine()["one"].error


def test_a_plugin_is_asked_by_name_and_one_that_is_not_there_is_told(install):
    install("bad", "import nosuchmodule")
    install("one", CLAIMS)
    assert named("one", discover()).name == "one"
    with pytest.raises(InputError, match=r"plugin='acme' is not installed; installed: .*one"):
        named("acme", discover())
    with pytest.raises(PluginError, match="did not load: ModuleNotFoundError"):
        named("bad", discover())


def test_no_claim_lists_what_is_installed_and_repeats_load_errors(install):
    install("bad", "import nosuchmodule")
    install("good", CLAIMS)
    with pytest.raises(ClaimError) as refused:
        claim({"model_type": "acme", "architectures": ["AcmeModel"]}, discover())
    text = str(refused.value)
    assert "no plugin claims model_type 'acme', architectures ['AcmeModel']" in text
    assert "good" in text
    assert "bad (archport-bad 0.1) did not load: ModuleNotFoundError" in text


@pytest.mark.parametrize("error", ["KeyError('hidden_size')", "archport.contract.InputError('no')"])
def test_a_plugin_that_fails_while_claiming_does_not_hide_another_claim(install, error):
    install("bad", f"import archport.contract\n@hookimpl\ndef archport_claim(config): raise {error}")
    install("good", CLAIMS)
    plugin, _spec = claim({"model_type": "toy"}, discover())
    assert plugin.name == "good"


def test_a_failure_while_claiming_is_repeated_when_nobody_claims(install):
    install("bad", "@hookimpl\ndef archport_claim(config): raise KeyError('hidden_size')")
    with pytest.raises(ClaimError, match=r"bad \(archport-bad 0.1\) failed.*KeyError: 'hidden_size'"):
        claim({"model_type": "toy"}, discover())

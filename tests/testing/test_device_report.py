"""`archport doctor --report`: one JSON that its schema describes, on any device, whatever fails, without names.

CUDA and Metal are facts of profiles put over this machine. No Metal machine has run this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from archport.cli import doctor
from archport.contract import InputError
from archport.device.profiles import profile
from archport.testing import device_report
from archport.testing.device_report import PARTS, Scrubber, machine, models, paths, report, schema
from archport.testing.finding import find

PROFILES = ("cpu", "h200", "m5-max-128gb")
OTHERS = ("m1-16gb", "m2-ultra-128gb", "m3-ultra-256gb", "m4-pro-24gb")
FAST = ("machine", "doctor", "routes")
TYPES: Mapping[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
KEYWORDS = {
    "$schema", "$id", "title", "description", "type", "required", "properties", "additionalProperties", "items", "enum",
    "const", "minimum", "minItems", "anyOf",
}  # fmt: skip


def write_report(path: Path, **options: Any) -> dict[str, Any]:
    """A report as the command makes it."""
    return device_report.write_report(path, examine=lambda: doctor.examine(), **options)


def problems(value: Any, rule: Mapping[str, Any], at: str = "$") -> list[str]:
    """Where a value breaks a JSON schema, of which this knows the keywords that ours uses, and no others."""
    assert set(rule) <= KEYWORDS, f"the validator does not know {set(rule) - KEYWORDS}"
    if "anyOf" in rule:
        found = [problems(value, each, at) for each in rule["anyOf"]]
        return [] if any(not each for each in found) else found[0]
    wrong: list[str] = []
    if "const" in rule and value != rule["const"]:
        wrong.append(f"{at} is {value!r}, not {rule['const']!r}")
    if "enum" in rule and value not in rule["enum"]:
        wrong.append(f"{at} is {value!r}, none of {rule['enum']}")
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return [*wrong, f"{at} is {value!r}, no {kinds}"]
    if isinstance(value, int | float) and value < rule.get("minimum", value):
        wrong.append(f"{at} is {value}, below {rule['minimum']}")
    if isinstance(value, list):
        wrong += [f"{at} is too short"] * (len(value) < rule.get("minItems", 0))
        wrong += [each for i, item in enumerate(value) for each in problems(item, rule.get("items", {}), f"{at}[{i}]")]
    if isinstance(value, dict):
        known, others = rule.get("properties", {}), rule.get("additionalProperties", True)
        wrong += [f"{at}.{name} is missing" for name in rule.get("required", ()) if name not in value]
        for name, each in value.items():
            if name in known:
                wrong += problems(each, known[name], f"{at}.{name}")
            elif isinstance(others, dict):
                wrong += problems(each, others, f"{at}.{name}")
            elif not others:
                wrong.append(f"{at}.{name} is not known")
    return wrong


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


@pytest.fixture(autouse=True)
def few_calls(monkeypatch, request) -> None:
    """A few of the calls that a report is about."""
    if "truth" not in request.keywords:
        monkeypatch.setattr(paths, "_LENGTHS", ((512, 512),))
        monkeypatch.setattr(paths, "_RUN", (("causal", 40, 72),))


def read(path: Path) -> dict[str, Any]:
    """A report as it lies on disk, once it is what the schema says."""
    found = json.loads(path.read_text(encoding="utf-8"))
    assert problems(found, schema()) == []
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"quick": 1},
        {"seconds": -1.0},
        {"notes": []},
        {"more": 1},
        {"kit": [{"plugin": "p", "check": "c", "tier": "tiny", "status": "fine"}]},
        {"attention": [{"call": "c"}]},
        {"doctor": {"facts": {"a": 1}, "faults": []}},
        {"parts": {}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_no_report(change, tmp_path):
    path = tmp_path / "r.json"
    write_report(path, parts=())
    assert problems(read(path) | change, schema())


@pytest.mark.parametrize("name", [*PROFILES, *(pytest.param(name, marks=pytest.mark.truth) for name in OTHERS)])
def test_a_report_is_what_the_schema_says_on_every_kind_of_device(name, tmp_path):
    device, path = replace(profile(name), simulated=False), tmp_path / "r.json"
    # Paths of another device than this can't all run here: that is told, too.
    write_report(path, quick=True, device=device, parts=(*FAST, "attention"), seconds=8)
    found = read(path)
    assert found["machine"]["device"]["kind"] == device.kind
    assert {found["parts"][part]["status"] for part in FAST} == {"done"}
    assert found["parts"]["attention"]["status"] == "done"
    assert any(entry["status"] != "skipped" for entry in found["attention"])


def test_what_a_plan_holds_is_compared_with_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "_SHAPES", ((64, 3),))
    first = next(models.examples())
    monkeypatch.setattr(models, "examples", lambda: iter([first]))
    path = tmp_path / "r.json"
    write_report(path, parts=("memory",))
    entries = read(path)["memory"]
    assert entries
    assert all(entry["holds"] == (entry["measured_bytes"] <= entry["planned_bytes"]) for entry in entries)


def test_the_kit_and_the_benchmark_say_what_time_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "examples", lambda: iter(()))
    path = tmp_path / "r.json"
    write_report(path, parts=("benchmark", "kit"), seconds=1e-6)
    found = read(path)
    assert (
        {entry["status"] for entry in found["kit"]} == {entry["status"] for entry in found["benchmark"]} == {"skipped"}
    )
    assert {"contract", "tiny"} == {entry["tier"] for entry in found["kit"]}
    assert len({entry["plugin"] for entry in found["kit"]}) >= 4


def test_a_plugin_whose_examples_fail_hides_no_other_plugin(load_kit, tmp_path, monkeypatch):
    def fails() -> Any:
        raise ZeroDivisionError("mine")

    broken = find(load_kit("lies").plugin("without_examples", archport_examples=fails))
    monkeypatch.setattr(models, "discover", lambda: [broken, find("qwen3")])
    monkeypatch.setattr(models, "CHECKS", [each for each in models.CHECKS if each.name == "example_is_small"])
    path = tmp_path / "r.json"
    write_report(path, parts=("kit",))
    assert {entry["plugin"]: entry["status"] for entry in read(path)["kit"]} == {broken.name: "blocked", "qwen3": "ok"}
    assert [tiny.subject.plugin.name for tiny in models.examples()] == ["qwen3"]


@pytest.mark.truth
def test_a_whole_quick_report(tmp_path):
    path = tmp_path / "r.json"
    write_report(path, quick=True)
    found = read(path)
    assert found["complete"]
    assert found["seconds"] < 3 * device_report.QUICK_SECONDS
    assert not [entry for entry in found["kit"] if entry["status"] in ("fail", "blocked")]
    assert not [entry for part in ("attention", "benchmark") for entry in found[part] if entry["status"] == "failed"]
    assert all(entry.get("holds", True) for entry in found["memory"])


@pytest.mark.parametrize("broken", FAST)
def test_a_part_that_fails_is_an_entry(broken, tmp_path, monkeypatch):
    def fails(*_: object) -> Any:
        raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")

    for place, name in ((machine, "about_machine"), (doctor, "examine"), (paths, "routes")):
        if FAST[(machine, doctor, paths).index(place)] == broken:
            monkeypatch.setattr(place, name, fails)
    path = tmp_path / "r.json"
    write_report(path, parts=FAST)
    found = read(path)
    assert found["parts"][broken]["error"].startswith("RuntimeError: [METAL]")
    assert {part: found["parts"][part]["status"] for part in FAST} == {
        part: "failed" if part == broken else "done" for part in FAST
    }
    assert not found["complete"]


def ended_by(error: BaseException, monkeypatch: pytest.MonkeyPatch, path: Path) -> dict[str, Any]:
    """A report on disk whose attention ended so after an entry."""

    def entries(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"call": "the first", "status": "done"}
        raise error

    monkeypatch.setattr(paths, "attention", entries)
    with pytest.raises(type(error)):
        write_report(path, parts=("machine", "attention", "kit"))
    return read(path)


def test_an_interrupt_keeps_what_was_done(monkeypatch, tmp_path):
    found = ended_by(KeyboardInterrupt(), monkeypatch, tmp_path / "r.json")
    assert found["attention"] == [{"call": "the first", "status": "done"}]
    assert found["machine"]["archport"]
    states = {name: found["parts"][name]["status"] for name in ("machine", "attention", "kit")}
    assert states == {"machine": "done", "attention": "interrupted", "kit": "not run"}


class Killed(BaseException):
    """As if the device took the process down."""


def test_the_file_names_the_part_that_took_the_process_down(monkeypatch, tmp_path):
    assert ended_by(Killed(), monkeypatch, tmp_path / "r.json")["parts"]["attention"]["status"] == "running"


def test_a_call_that_gives_nan_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "attend", lambda path, q, k, v, scale: q * float("nan"))
    path = tmp_path / "r.json"
    write_report(path, quick=True, parts=("attention",), seconds=8)
    first = read(path)["attention"][0]
    assert first["status"] == "failed"
    assert "NaN" in first["failure"]


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("/Users/jane/models/x.safetensors: cut", "<path>/x.safetensors: cut"),
        ("can't read '/Volumes/My Disk/jane/a b.json' (2)", "can't read '<path>/a b.json' (2)"),
        ("~/Library/Caches/archport/routes.json", "<path>/routes.json"),
        (r"C:\Users\jane\x.json is not there", "<path>/x.json is not there"),
        ("private/var/folders/ab/x", "<path>/x"),
        ("of jane on janes-mac.local", "of <name> on <name>.local"),
        ("Jane@janes-mac", "<name>@<name>"),
        ("jane.doe@example.org wrote", "<address> wrote"),
        ("http://10.0.0.7:8080/v1 and 10.0.0.7", "<address> and <address>"),
        ("https://hub.corp.example/api", "<address>"),
        ("see https://github.com/ml-explore/mlx/issues/1", "see https://github.com/ml-explore/mlx/issues/1"),
        ("1.5 GB of 16/32 heads, 3 flop/s, Qwen/Qwen3", "1.5 GB of 16/32 heads, 3 flop/s, Qwen/Qwen3"),
        ("janet stays", "janet stays"),
    ],
)
def test_names_and_places_are_taken_out(said, left):
    assert Scrubber(["jane", "janes-mac"]).text(said) == left


def test_a_report_tells_neither_home_nor_user_nor_host(tmp_path, monkeypatch):
    secrets = ("janedoe", "janes-macbook", str(Path.home()), str(tmp_path), "corp.example", "k3y")
    monkeypatch.setenv("USER", secrets[0])
    monkeypatch.setattr("socket.gethostname", lambda: secrets[1])
    monkeypatch.setenv("HF_ENDPOINT", "https://corp.example")
    for name in ("ARCHPORT_API_KEY", "ARCHPORT_API_KEYS", "ARCHPORT_SERVE_ALLOWED_HOSTS", "HF_TOKEN"):
        monkeypatch.setenv(name, "k3y")
    monkeypatch.setenv("ARCHPORT_PREFER", "qwen3")
    monkeypatch.setenv("ARCHPORT_CACHE_DIR", str(tmp_path / "janedoe"))

    def fails(*_: object) -> Any:
        raise OSError(f"{tmp_path}/janedoe/x on janes-macbook: https://corp.example/x, {Path.home()}/y")

    monkeypatch.setattr(paths, "routes", fails)
    path = tmp_path / "r.json"
    write_report(path, parts=FAST)
    assert read(path)["parts"]["routes"]["status"] == "failed"
    assert [each for each in secrets if each.lower() in path.read_text(encoding="utf-8").lower()] == []
    assert read(path)["machine"]["settings"]["ARCHPORT_PREFER"] == "qwen3"


@pytest.mark.parametrize("place", ["missing/r.json", "", "."])
def test_a_file_that_can_not_be_written_is_refused_before_anything_runs(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "_part", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(InputError, match="can't be written"):
        write_report(Path(place))
    assert list(tmp_path.iterdir()) == []


def test_the_schema_knows_every_part_and_says_what_never_ran():
    rule = schema()
    assert set(rule["properties"]["parts"]["required"]) == set(PARTS) <= set(rule["required"])
    assert "Never run on a Mac's GPU" in rule["description"]
    assert re.search("had run on a Mac's GPU", report.NOTES[0])


def test_the_command_says_how_each_part_ended(monkeypatch, tmp_path):
    def written(path: Path, **_: object) -> dict[str, Any]:
        return {"parts": {"machine": {"status": "done"}, "kit": {"status": "failed", "error": "why"}}}

    monkeypatch.setattr(device_report, "write_report", written)
    app = typer.Typer()
    app.command()(doctor.doctor)
    ended = CliRunner().invoke(app, ["--report", str(tmp_path / "r.json"), "--quick"])
    assert ended.exit_code == 0
    assert "kit        failed: why" in ended.output
    assert CliRunner().invoke(app, ["--quick"]).exit_code == 2

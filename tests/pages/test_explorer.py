"""The plan explorer: its numbers are those of plans, and it is one file that needs nothing else."""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from archport.cli.plan import described, device_of, plan, planner_of
from archport.cli.plan_frontier import MOST_PAGE_BYTES, duration, variants
from archport.contract import InputError
from archport.device.profiles import PROFILES
from archport.pages.explorer import Form, explorer_data, explorer_page
from archport.planning.frontier import BATCHES, contexts_of, frontier, longest_context, point
from pages.points import check_points, data_of

DATA = Path(__file__).parents[1] / "planning" / "data"
BERT = Path(__file__).parents[1] / "goldens" / "bert-plain"
QWEN = str(DATA / "qwen3_embedding_06b.json")
DEVICES = ("m1-8gb", "h200")


@pytest.fixture(scope="module")
def invoke():
    app = typer.Typer()
    app.command()(plan)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


# Of a small model here; of one whose long contexts do not fit by `make truth`, as refusals take their time.
MODELS = [str(BERT), pytest.param(QWEN, marks=pytest.mark.truth)]


@pytest.fixture(scope="module", params=MODELS, ids=["bert", "qwen3"])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def new(model: str) -> int:
    return 64 if model == QWEN else 0


@pytest.fixture(scope="module")
def page(model: str, new: int) -> str:
    forms: list[Form] = []
    about = described(model, device_of("h200"))
    for name in DEVICES:
        device = device_of(name)
        some = variants(described(model, device), device, budget=None)
        kept = some if name == "h200" else some[:1]
        forms += [Form(device, form.name, form.planner, form.planner.budget, form.estimated) for form in kept]
    contexts = contexts_of(about.spec.max_positions)
    return explorer_page(explorer_data("a model", forms, contexts, new_tokens=new, pack=True))


def test_numbers_of_the_page_are_those_of_plan_json(page: str, model: str, new: int, invoke):
    data = data_of(page)
    assert (set(data["devices"]), data["new_tokens"]) == (set(DEVICES), new)
    check_points(data, invoke, ["-m", model])


@pytest.mark.truth
def test_some_points_fit_and_some_do_not(page: str, model: str):
    for form in data_of(page)["forms"]:
        if form["device"] == "m1-8gb" and model == QWEN:
            assert {len(cell) for cell in form["points"]} == {2, 6}


def test_the_page_needs_nothing_but_itself(page: str):
    script = page.replace("http://www.w3.org/", "")
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\((?!data:)|@import|fetch\(|XMLHttpRequest', script) == []
    assert "Copyright (c) 2022 Leon Sorokin" in page
    assert len(page.encode()) < MOST_PAGE_BYTES


def test_the_command_writes_a_page_of_several_devices_whose_name_can_not_break_out(tmp_path: Path, invoke):
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    shutil.copy(BERT / "config.json", folder / "config.json")
    done = invoke("-m", folder / "config.json", "--device", "h200,M1-16gb, h200", "--html", tmp_path / "plans.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "plans.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert list(data_of(page)["devices"]) == ["h200", "m1-16gb"]
    assert [form["form"] for form in data_of(page)["forms"]] == ["as published", "8-bit", "6-bit", "4-bit"] * 2


def test_points_are_the_numbers_of_the_page_in_the_type_that_is_asked_for(tmp_path: Path, invoke):
    wanted = ("-m", BERT, "--device", "cpu,h200", "--dtype", "float16")
    done = invoke(*wanted, "--html", tmp_path / "plans.html", "--points", tmp_path / "plans.json")
    assert done.exit_code == 0, done.output
    points = json.loads((tmp_path / "plans.json").read_text(encoding="utf-8"))
    assert points == data_of((tmp_path / "plans.html").read_text(encoding="utf-8"))
    check_points(points, invoke, ["-m", BERT, "--dtype", "float16"])
    assert json.loads(invoke(*wanted[:2], "--device", "cpu", "--points", "-").output)["devices"].keys() == {"cpu"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_draws_the_point_that_a_link_names(page: str, tmp_path: Path):
    path = tmp_path / "plans.html"
    path.write_text(page, encoding="utf-8")
    data = data_of(page)
    form = next(form for form in data["forms"] if form["device"] == "h200" and form["form"] == "4-bit")
    link = f"{path.as_uri()}#device=h200&form=4-bit&context=9&batch=3"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
    shown = subprocess.run([*command, link], capture_output=True, text=True, timeout=120).stdout
    cell = form["points"][9 * 8 + 3]
    size = next(f"{cell[0] / size:#.3g} {unit}" for unit, size in (("GB", 1e9), ("MB", 1e6)) if cell[0] >= size)
    assert re.search(rf'class="verdict fits"[^>]*>✓ Fits: {re.escape(size)}', shown)
    assert f"{data['contexts'][9]:,} tokens" in shown
    assert shown.count(' data-point="') == len(data["contexts"]) * 8
    assert "<canvas" in shown


def test_contexts_are_planned_up_to_the_models_limit():
    for limit in (2, 512, 513, 8192, 32768, 40960, 131072, 262144):
        contexts = contexts_of(limit)
        assert contexts[-1] == limit
        assert list(contexts) == sorted(set(contexts))
        assert len(contexts) >= min(12, limit)
        assert all(2 * before >= after for before, after in pairwise(contexts))


@pytest.mark.parametrize("name", ["h200"])
def test_the_longest_context_fits_and_one_token_more_does_not(name: str):
    device = device_of(name)
    about = described(QWEN, device)
    plans = planner_of(about, device, budget=1_700_000_000)
    longest = longest_context(plans, 32768, new_tokens=16)
    assert 0 < longest < 32768
    assert point(plans, longest, 1, new_tokens=16).fits
    assert not point(plans, longest + 1, 1, new_tokens=16).fits


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_plans_within_its_budget(name: str):
    device = device_of(name)
    points = frontier(planner_of(described(QWEN, device), device, budget=None), (512,), (1, 32))
    assert all(each.plan is not None and 0 < each.plan.peak <= device.default_budget for each in points)


@pytest.mark.truth
def test_a_terminal_shows_the_frontier_the_longest_context_and_the_heaviest_weights(invoke):
    done = invoke("-m", QWEN, "--device", "m1-8gb", "--budget", "1.5GB", "--new", 16)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    rows = [line.split() for line in lines if re.match(r"\s+[\d,]+  ", line)]
    assert len(rows) == len(contexts_of(32768))
    assert any(row[-1] == "-" for row in rows)
    read = json.loads(invoke("-m", QWEN, "--device", "m1-8gb", "--budget", "1.5GB", "--new", 16, "--json").output)
    longest = read["longest_context"]
    assert list(longest) == ["as published", "8-bit", "6-bit", "4-bit"]
    assert list(longest.values()) == sorted(longest.values())
    assert len(read["points"]) == len(rows) * len(BATCHES)
    assert f"as published {longest['as published']:,}" in done.output
    heaviest = next((form for form, tokens in longest.items() if tokens == 32768), None)
    assert read["heaviest_that_fits"] == heaviest


def test_what_belongs_to_one_plan_is_refused_without_one(invoke):
    alone = [("--mask", "dense"), ("--cached", "5"), ("--verbose",), ("--batch", "2"), ("--json", "--points", "-")]
    for arguments in (*alone, ("--json", "--html", "x.html"), ("--tokens", "5", "--html", "x.html")):
        assert isinstance(invoke("-m", QWEN, "--device", "h200", *arguments).exception, InputError), arguments
    assert isinstance(invoke("-m", QWEN, "--device", "h200", "--html", "/no/such/x.html").exception, InputError)


TIMES = [(0.0005, "500 us"), (0.0123, "12 ms"), (1.5, "1.5 s"), (100, "100 s"), (130, "2.2 min"), (9000, "2.5 h")]


@pytest.mark.parametrize(("seconds", "told"), TIMES)
def test_times_are_told_in_a_unit_of_their_size(seconds: float, told: str):
    assert duration(seconds) == told

"""Which route a role takes: against what sentence-transformers took by drawn rules, and what is refused."""

import json
from pathlib import Path

import pytest

from archport.checkpoint.routes import expanded, read_routes
from archport.contract.errors import CheckpointError

CASES = json.loads(
    (Path(__file__).parents[1] / "goldens" / "routed" / "routes.json").read_text(encoding="utf-8")
)["cases"]  # fmt: skip
ENTRY = [{"type": "sentence_transformers.models.Router", "path": ""}]
STATIC, TRANSFORMER = "x.SparseStaticEmbedding", "sentence_transformers.models.Transformer"


def stated(structure, **parameters):
    types = {
        name: STATIC if name.startswith("static") else TRANSFORMER for names in structure.values() for name in names
    }
    return {"types": types, "structure": structure, "parameters": parameters}


def routes(content, name="router_config.json", entries=ENTRY):
    return read_routes(entries, {name: content}.get)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_role_takes_the_route_that_sentence_transformers_takes(case):
    # Each route a table of its own, so that the routes that are taken can be run.
    structure = {name: [f"static_{name}"] for name in case["names"]}
    taken = {None if role == "None" else role: route for role, route in case["taken"].items()}
    if not any(taken.values()):
        with pytest.raises(CheckpointError, match="have no route"):
            routes(stated(structure, **case["parameters"]))
        return
    assert routes(stated(structure, **case["parameters"])).roles == taken


def test_the_transformer_s_modules_stand_in_the_router_s_place():
    content = stated({"query": ["static"], "document": ["", "pool"]}, default_route="document")
    entries = [*ENTRY, {"type": "sentence_transformers.models.Normalize", "path": "1_Normalize"}]
    found = expanded(entries, {"router_config.json": content}.get)
    assert [entry["path"] for entry in found] == ["", "pool", "1_Normalize"]
    assert routes(content).static == {"query": "static"}


def test_a_router_in_a_folder_has_its_modules_below_it():
    content = stated({"query": ["static"], "document": ["body"]})
    found = routes(content, "0_Router/router_config.json", [{**ENTRY[0], "path": "0_Router"}])
    assert found.static == {"query": "0_Router/static"}
    assert found.modules["document"][0]["path"] == "0_Router/body"


def test_an_older_router_says_the_same_in_config_json():
    entries = [{"type": "sentence_transformers.models.Asym", "path": ""}]
    found = routes(stated({"query": ["body"], "doc": ["body"]}, allow_empty_key=True), "config.json", entries)
    # It knows no documents by that name, as there.
    assert found.roles == {"document": None, None: "query", "query": "query"}


def test_a_route_that_is_more_than_a_table_is_a_pipeline_of_its_own():
    content = stated({"query": ["small"], "document": ["body"], "text": ["static"]}, default_route="text")
    found = routes(content)
    assert (found.main, found.others, found.static) == ("document", ("query", "text"), {"text": "static"})
    entries = [*ENTRY, {"type": "sentence_transformers.models.Normalize", "path": "1_Normalize"}]
    own = expanded(entries, {"router_config.json": content}.get, "query")
    assert [entry["path"] for entry in own] == ["small", "1_Normalize"]


def test_routes_of_the_same_modules_are_one():
    found = routes(stated({"query": ["body"], "document": ["body"]}))
    assert found.static == {}
    assert set(found.roles.values()) == {"document"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (stated({"query": ["a"]}, route_mappings={"(None, None)": "b"}), "leads to b; its routes are query"),
        (stated({"query": ["a"]}, route_mappings={"query": "query"}), "expected .task, modality."),
        (stated({"query": ["a"]}, default_route="b"), "leads to b"),
        (stated({"query": []}), "the route 'query' is"),
        (stated({}), "lacks `types` or `structure`"),
        ({"types": {}, "structure": {"query": "a"}}, "the route 'query' is 'a'"),
        ({"types": {}, "structure": {"query": ["a"]}}, "expected names among"),
        (None, "is absent"),
    ],
)
def test_what_can_t_be_run_or_read_is_refused(content, says):
    with pytest.raises(CheckpointError, match=says):
        routes(content)

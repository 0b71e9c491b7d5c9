"""`archport eval`: models side by side on small tasks, with how far luck alone would carry their difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from archport.cli.options import Dtype, MemoryBudget, note
from archport.contract import InputError

if TYPE_CHECKING:
    from archport.evaluation.results import Result

_MTEB = "mteb:"
_WIDTH = 20


def evaluate(
    model: Annotated[list[str], typer.Option("--model", "-m", help="Folder, hub id or alias; once for each model.")],
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", "-t", metavar="NAME", help="retrieval, sts, pairs, or mteb:NAME; default: the first three."
        ),
    ] = None,
    dimensions: Annotated[int | None, typer.Option(help="Leading dimensions of vectors to keep.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the scores and their intervals.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    dtype: Dtype = None,
    memory_budget: MemoryBudget = None,
) -> None:
    """Score models on small bundled tasks, or on MTEB's, and say whether the later ones differ from the first.

    The interval holds 95 percent of what other draws of as many items would give; p is how often two equally good
    models would differ as much. MTEB's tasks need the package mteb and tell neither.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 4 would not fit memory.
    """
    from archport.evaluation.tasks import Kind

    names = task or list(get_args(Kind))
    wrong = [name for name in names if name not in get_args(Kind) and not name.startswith(_MTEB)]
    if wrong:
        raise typer.BadParameter(f"--task {wrong[0]}: expected {', '.join(get_args(Kind))}, or mteb:NAME")
    if len(set(model)) < len(model):
        raise typer.BadParameter(f"--model {model[-1]} is given two times")
    own: list[Any] = [name for name in dict.fromkeys(names) if not name.startswith(_MTEB)]
    others = [name.removeprefix(_MTEB) for name in dict.fromkeys(names) if name.startswith(_MTEB)]
    if plot is not None and not own:
        raise typer.BadParameter("--plot draws the bundled tasks, and none was named")
    made, scores = _run(model, own, others, dimensions, {"dtype": dtype, "memory_budget": memory_budget})
    if plot is not None:
        from archport.evaluation.plot import svg

        plot.write_text(svg(made), encoding="utf-8")
        note(f"archport: wrote {plot}")
    typer.echo(json.dumps(_told(made, scores)) if as_json else "\n".join(_lines(made, scores)))


def _run(
    models: list[str], own: list[Any], others: list[str], dimensions: int | None, options: dict[str, Any]
) -> tuple[dict[str, list[Result]], dict[str, dict[str, float]]]:
    """Every model's results on archport's tasks, and its main scores on MTEB's."""
    from archport import engine
    from archport.contract import EmbeddingHead
    from archport.evaluation.results import evaluated

    made: dict[str, list[Result]] = {}
    scores: dict[str, dict[str, float]] = {}
    for name in models:
        with engine.load(name, **options) as loaded:
            embeds = isinstance(loaded.head, EmbeddingHead)
            if dimensions is not None and not embeds:
                raise InputError(f"dimensions={dimensions}: {name} makes no vectors, so there is nothing to cut")
            cut = {"dimensions": dimensions} if embeds else {}
            made[name] = [evaluated(loaded, kind, overflow="truncate", **cut) for kind in own]
            scores[name] = _by_mteb(loaded, others, dimensions, embeds=embeds) if others else {}
    return made, scores


def _by_mteb(model: Any, tasks: list[str], dimensions: int | None, *, embeds: bool) -> dict[str, float]:
    try:
        import mteb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("task mteb:... needs the package mteb, which is not installed: pip install mteb") from error
    from archport.integrations.mteb import ArchportCrossEncoder, ArchportEncoder, bundled_tasks

    encoder = ArchportEncoder(model, truncate_dim=dimensions) if embeds else ArchportCrossEncoder(model)
    bundled = {task.metadata.name: task for task in bundled_tasks()}
    scores: dict[str, float] = {}
    for name in tasks:
        try:
            chosen = bundled.get(name) or mteb.get_task(name)
        except KeyError as error:
            raise InputError(f"task mteb:{name} is none of MTEB's; mteb.get_tasks() lists them") from error
        result = mteb.evaluate(encoder, chosen, cache=None, co2_tracker=False, show_progress_bar=False)
        scores[name] = float(result.task_results[0].get_score())
    return scores


def _told(made: dict[str, list[Result]], scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    from archport.evaluation.results import difference

    first = next(iter(made))
    rows: list[dict[str, Any]] = []
    for name, results in made.items():
        for place, result in enumerate(results):
            row: dict[str, Any] = {
                "model": name, "task": result.task, "items": len(result.values), "measure": result.measure,
                "score": result.score, "low": result.low, "high": result.high,
            }  # fmt: skip
            if name != first:
                row["difference"], row["p"] = difference(made[first][place], result)
            rows.append(row)
        rows += [{"model": name, "task": f"{_MTEB}{task}", "score": score} for task, score in scores[name].items()]
    return {"results": rows}


def _lines(made: dict[str, list[Result]], scores: dict[str, dict[str, float]]) -> list[str]:
    rows = _told(made, scores)["results"]
    tasks = dict.fromkeys(row["task"] for row in rows)
    width = max(map(len, made))
    lines: list[str] = []
    for task in tasks:
        of_task = [row for row in rows if row["task"] == task]
        measure = of_task[0].get("measure", "main score")
        items = f", {of_task[0]['items']} items" if "items" in of_task[0] else ""
        lines.append(f"{task} ({measure}{items})")
        for row in of_task:
            full = round(_WIDTH * min(max(row["score"], 0), 1))
            bar = "█" * full + "·" * (_WIDTH - full)
            between = f"  [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
            apart = f"  {row['difference']:+.3f}, p {row['p']:.4f}" if "p" in row else ""
            lines.append(f"  {row['model']:<{width}}  {bar}  {row['score']:.3f}{between}{apart}")
    return lines

"""`archport plan`: what a request would need on this machine or another, without running it or reading a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archport.cli.described import Described, Loading, described, planner_of
from archport.cli.embed import DEFAULT_MODEL
from archport.cli.options import Adapter, Adapters, MaxContext, adapters_of
from archport.cli.words import message_and_code
from archport.contract import InputError

if TYPE_CHECKING:
    from archport.contract import AdmissionRefused, DeviceFacts
    from archport.planning import Plan


# Every row of a plan is planned for itself.
MOST_ROWS = 100_000


def plan(
    tokens: Annotated[
        int | None, typer.Option(help="Tokens per row, cached ones not counted; without it, a table of what fits.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Folder, config.json, hub id or alias.")] = DEFAULT_MODEL,
    batch: Annotated[int | None, typer.Option(help="Rows; 1 where left out.", show_default=False)] = None,
    cached: Annotated[int, typer.Option(help="Tokens already cached per row.")] = 0,
    new: Annotated[int, typer.Option(help="Tokens to generate per row; 0 plans an embedding.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(
            help="A profile such as m2-ultra-128gb; default: this machine. With --html or --points several, or 'all'."
        ),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Bytes the plan may use, such as 16GB.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or checkpoint, as when loading.")
    ] = None,
    max_context: MaxContext = None,
    adapter: Adapter = None,
    adapters: Adapters = None,
    mask: Annotated[str | None, typer.Option(help="'dense' prices one (B,1,S,S) mask in float32.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Every number and every reason.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page that shows what fits, for every device and packing.")
    ] = None,
    points: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the page's numbers as JSON; - writes to standard output.")
    ] = None,
) -> None:
    """Show why each batch has its rows, chunk, evaluations and paths, and the bytes per component.

    Without --tokens it draws a table of contexts by batches: what fits, its peak and its time. With --html it writes
    the same as a page, and with --points as numbers, for several devices and for the weights packed to 8, 6 and 4 bits.

    Exit code 4 when the request would not fit memory, 1 when it is refused otherwise; the message, or the JSON object,
    says what binds and what would fit.
    """
    from archport.contract import AdmissionRefused
    from archport.contract.sizes import parse_bytes

    if mask not in (None, "dense"):
        raise InputError(f"--mask {mask}: expected 'dense', or no --mask to let the planner choose")
    rows = 1 if batch is None else batch
    if not 1 <= rows <= MOST_ROWS:
        raise InputError(f"--batch {batch}: expected 1 to {MOST_ROWS:,} rows")
    limit = None if budget is None else parse_bytes(budget, what="budget")
    loading = Loading(dtype, max_context, adapter, adapters_of(adapters, adapter), limit)
    written = html is not None or points is not None
    if written or tokens is None:
        flags = {"--batch": batch, "--cached": cached, "--mask": mask, "--verbose": verbose}
        flags |= {"--tokens": tokens, "--json": as_json} if written else {}
        for flag, given in flags.items():
            if given:
                raise InputError(f"{flag} is for one plan: give its --tokens, and leave out --html and --points")
        from archport.cli.plan_frontier import draw, explored, write_page, write_points

        if not written:
            draw(model, device_of(device), loading, new_tokens=new, as_json=as_json)
            return
        data = explored(model, devices_of(device), loading, new_tokens=new)
        if html is not None:
            write_page(html, data)
        if points is not None:
            write_points(points, data)
        return
    where = device_of(device)
    about = described(model, where, loading)
    try:
        planned = make(
            about,
            where,
            lengths=[tokens] * rows,
            cached=cached,
            new_tokens=new,
            budget=limit,
            dense=mask == "dense",
        )
    except AdmissionRefused as refusal:
        if not as_json:
            raise
        typer.echo(json.dumps(refusal_dict(refusal), indent=2))
        raise typer.Exit(message_and_code(refusal)[1]) from refusal
    typer.echo(json.dumps(planned.to_dict(), indent=2) if as_json else planned.explain(verbose=verbose))


def make(
    about: Described,
    device: DeviceFacts,
    *,
    lengths: list[int],
    cached: int,
    new_tokens: int,
    budget: int | None,
    dense: bool,
) -> Plan:
    """The plan of a request; raises AdmissionRefused when there is none."""
    from archport.planning import Request

    request = Request(
        lengths=lengths,
        cached=[cached] * len(lengths),
        new_tokens=new_tokens,
        dense=dense,
        pack=about.pack,
        readout=about.readout,
    )
    return planner_of(about, device, budget=budget)(request)


def device_of(name: str | None) -> DeviceFacts:
    if name is not None:
        from archport.device.profiles import profile

        return profile(name)
    import archport.device.backend  # noqa: F401  # isort: skip
    from archport.device.facts import this_device

    return this_device()


def devices_of(names: str | None) -> list[DeviceFacts]:
    """Machines by their names, with commas between them; "all" is this one and every profile."""
    if names is None:
        return [device_of(None)]
    if names.strip().lower() != "all":
        return [device_of(name) for name in dict.fromkeys(name.strip().lower() for name in names.split(","))]
    from archport.device.profiles import PROFILES

    return [device_of(None), *PROFILES.values()]


def refusal_dict(refusal: AdmissionRefused) -> dict[str, object]:
    """A refusal as JSON-ready values."""
    return {
        "refused": refusal.code,
        "message": str(refusal),
        "required_bytes": refusal.required_bytes,
        "limit_bytes": refusal.limit_bytes,
        "binding": refusal.binding,
        "breakdown": refusal.breakdown,
        "largest_buffer": refusal.largest_buffer,
        "max_tokens_that_fit": refusal.max_tokens_that_fit,
        "max_rows_that_fit": refusal.max_rows_that_fit,
        "requested": refusal.requested,
        "ceiling": refusal.ceiling,
    }

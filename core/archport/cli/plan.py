"""`archport plan`: what a request would need on this machine or another, without running it or reading a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from archport.cli.embed import DEFAULT_MODEL
from archport.cli.words import message_and_code
from archport.contract import InputError

if TYPE_CHECKING:
    from archport.contract import AdmissionRefused, ArchSpec, DeviceFacts, DType
    from archport.contract.hooks import Hooks
    from archport.planning import Plan, Planner


# Every row of a plan is planned for itself.
MOST_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Described:
    """What a plan needs to know of a model.

    Args:
        weight_bytes: bytes of the weights on the planned device; None to estimate them from the spec.
        dtype: element type of the computation; None: the device's usual one.
    """

    spec: ArchSpec
    hooks: Hooks
    label: str
    weight_bytes: int | None
    dtype: DType | None = None


def plan(
    tokens: Annotated[
        int | None, typer.Option(help="Tokens per row, cached ones not counted; without it, a table of what fits.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Folder, config.json, hub id or alias.")] = DEFAULT_MODEL,
    batch: Annotated[int, typer.Option(help="Rows.")] = 1,
    cached: Annotated[int, typer.Option(help="Tokens already cached per row.")] = 0,
    new: Annotated[int, typer.Option(help="Tokens to generate per row; 0 plans an embedding.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="A profile such as m2-ultra-128gb; default: this machine. With --html several, or 'all'."),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Bytes the plan may use, such as 16GB.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or checkpoint, as when loading.")
    ] = None,
    mask: Annotated[str | None, typer.Option(help="'dense' prices one (B,1,S,S) mask in float32.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Every number and every reason.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page that shows what fits, for every device and packing.")
    ] = None,
) -> None:
    """Show why each batch has its rows, chunk, evaluations and paths, and the bytes per component.

    Without --tokens it draws a table of contexts by batches: what fits, its peak and its time. With --html it writes
    the same as a page, for several devices and for the weights packed to 8, 6 and 4 bits.

    Exit code 4 when the request would not fit memory, 1 when it is refused otherwise; the message, or the JSON object,
    says what binds and what would fit.
    """
    from archport.contract import AdmissionRefused
    from archport.contract.sizes import parse_bytes

    if mask not in (None, "dense"):
        raise InputError(f"--mask {mask}: expected 'dense', or no --mask to let the planner choose")
    if not 1 <= batch <= MOST_ROWS:
        raise InputError(f"--batch {batch}: expected 1 to {MOST_ROWS:,} rows")
    if html is not None or tokens is None:
        if cached or mask or verbose or dtype or (html is not None and as_json):
            raise InputError("--cached, --mask, --dtype and --verbose are for one plan: name --tokens, and no --html")
        from archport.cli.plan_frontier import draw, write_page

        limit = None if budget is None else parse_bytes(budget, what="budget")
        if html is not None:
            write_page(html, model, devices_of(device), new_tokens=new, budget=limit)
        else:
            draw(model, device_of(device), new_tokens=new, budget=limit, as_json=as_json)
        return
    where = device_of(device)
    about = described(model, where, dtype)
    try:
        planned = make(
            about,
            where,
            lengths=[tokens] * batch,
            cached=cached,
            new_tokens=new,
            budget=None if budget is None else parse_bytes(budget, what="budget"),
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

    # As `embed` runs such rows.
    pack = "embed" in about.spec.tasks
    return planner_of(about, device, budget=budget)(
        Request(lengths=lengths, cached=[cached] * len(lengths), new_tokens=new_tokens, dense=dense, pack=pack)
    )


def planner_of(about: Described, device: DeviceFacts, *, budget: int | None) -> Planner:
    """What plans requests of a model on a device."""
    from archport.attention import Chooser, ProbedRoutes, TableRoutes, builtin_backends
    from archport.planning import Planner

    routes = TableRoutes() if device.simulated else ProbedRoutes()
    return Planner.of(
        about.spec,
        device,
        Chooser(builtin_backends(routes, about.hooks.sdpa_backends())),
        budget=budget,
        dtype=about.dtype,
        weight_bytes=about.weight_bytes,
        pins=about.hooks,
        plugin=about.label,
    )


def described(model: str, device: DeviceFacts, dtype: str | None = None) -> Described:
    """A model's spec and hooks, from its config alone where there are no weights.

    Raises:
        ModelNotFound, CheckpointError, ClaimError: as loading it would.
    """
    path = Path(model).expanduser()
    config = path / "config.json" if path.is_dir() else path
    if config.suffix == ".json" and config.is_file() and not any(config.parent.glob("*.safetensors")):
        return _from_config(config, device, dtype)
    from archport.checkpoint import weight_bytes
    from archport.checkpoint.dtype import LoadDType, choose_dtype
    from archport.loading import describe

    about = describe(model)

    def bytes_of(dtype: LoadDType, dequantize: bool) -> int:
        return weight_bytes(about.checkpoint, dtype=dtype, dequantize=dequantize)

    choice = choose_dtype(dtype, about.spec, device.kind, budget=device.default_budget, bytes_of=bytes_of)
    weights = bytes_of(choice.dtype, choice.dequantize)
    return Described(about.spec, about.hooks, about.plugin.label, weights, _computed(dtype, about.spec))


def _computed(dtype: str | None, spec: ArchSpec) -> DType | None:
    """The element type that a checked choice computes in; None where the device's usual one is meant."""
    return spec.dtype if dtype == "checkpoint" else cast("DType | None", dtype)


def _from_config(path: Path, device: DeviceFacts, dtype: str | None) -> Described:
    """A model of which there is only a config: its weights are estimated."""
    from dataclasses import replace

    from archport.checkpoint import normalise_config, read_quantization
    from archport.checkpoint.disk import read_object
    from archport.checkpoint.dtype import choose_dtype
    from archport.contract import CheckpointError
    from archport.contract.hooks import Hooks, Speaker
    from archport.contract.plugins import claim, discover

    raw = read_object(path)
    if raw is None:
        raise CheckpointError(f"{path} is not a JSON object; expected a model's config.json")
    config = normalise_config(raw)
    plugin, spec = claim(config, discover())
    assert plugin.module is not None, "a plugin that claims has been imported"
    spec = replace(spec, quantization=spec.quantization or read_quantization(config))
    # An unknown name, or one in which the family overflows, is refused as it is when loading.
    choose_dtype(dtype, spec, device.kind, budget=device.default_budget, bytes_of=lambda *_: 0)
    return Described(spec, Hooks([Speaker(plugin.label, plugin.module)]), plugin.label, None, _computed(dtype, spec))


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
        return [device_of(name) for name in names.split(",")]
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

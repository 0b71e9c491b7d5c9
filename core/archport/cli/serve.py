"""`archport serve`: models behind the HTTP interfaces that programs already speak."""

from __future__ import annotations

import os
import sys
import threading
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archport.cli.options import adapters_of, note
from archport.contract import InputError

if TYPE_CHECKING:
    from archport.serving.server import Server


class TokenIds(StrEnum):
    reject = "reject"
    accept = "accept"


def serve(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            metavar="[ID=]NAME",
            envvar="ARCHPORT_SERVE_MODELS",
            help="Folder, hub id or alias, and how requests call it; may be repeated.",
        ),
    ],
    host: Annotated[
        str, typer.Option(envvar="ARCHPORT_SERVE_HOST", help="Address; others than loopback need API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="ARCHPORT_SERVE_PORT", min=0, max=65535, help="0 takes a free one.")] = (
        8080
    ),
    api_key_file: Annotated[
        Path | None,
        typer.Option(envvar="ARCHPORT_SERVE_API_KEY_FILE", help="One key per line. ARCHPORT_API_KEYS holds them, too."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve other machines without keys.", envvar="ARCHPORT_SERVE_INSECURE")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", envvar="ARCHPORT_SERVE_ALLOWED_HOSTS", help="A Host header to let in."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", envvar="ARCHPORT_SERVE_CORS_ORIGINS", help="Whose pages may call."),
    ] = None,
    token_ids: Annotated[
        TokenIds, typer.Option(envvar="ARCHPORT_SERVE_TOKEN_IDS", help="What to do with inputs that are ids already.")
    ] = TokenIds.reject,
    any_dimensions: Annotated[
        bool,
        typer.Option(
            "--any-dimensions", envvar="ARCHPORT_SERVE_ANY_DIMENSIONS", help="Cut vectors of any model when asked to."
        ),
    ] = False,
    memory_budget: Annotated[
        str | None,
        typer.Option(metavar="BYTES", envvar="ARCHPORT_SERVE_MEMORY_BUDGET", help="Of all models, such as 16GB."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(envvar="ARCHPORT_SERVE_DTYPE", help="float32, float16, bfloat16 or checkpoint.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(envvar="ARCHPORT_SERVE_REVISION", help="Branch, tag or commit on the hub.")
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ID", envvar="ARCHPORT_SERVE_ADAPTER", help="A LoRA adapter (PEFT), with one --model."
        ),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER|ID",
            envvar="ARCHPORT_SERVE_ADAPTERS",
            help="One kept apart, with one --model, for requests whose task is NAME; may be repeated.",
        ),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(envvar="ARCHPORT_SERVE_MAX_CONTEXT", help="Longest text in tokens.")
    ] = None,
    chat_share: Annotated[
        float, typer.Option(envvar="ARCHPORT_SERVE_CHAT_SHARE", help="Of the time, while rows wait too.")
    ] = 0.7,
    batch_tokens: Annotated[
        int, typer.Option(envvar="ARCHPORT_SERVE_BATCH_TOKENS", min=1, help="Tokens run together at most.")
    ] = 16_384,
    queue_tokens: Annotated[
        int, typer.Option(envvar="ARCHPORT_SERVE_QUEUE_TOKENS", min=1, help="Tokens that may wait.")
    ] = 1_000_000,
    queue_requests: Annotated[
        int, typer.Option(envvar="ARCHPORT_SERVE_QUEUE_REQUESTS", min=1, help="Requests that may wait.")
    ] = 2048,
    key_requests: Annotated[
        int | None,
        typer.Option(envvar="ARCHPORT_SERVE_KEY_REQUESTS", min=1, help="Requests of one key under way; then 429."),
    ] = None,
    max_inputs: Annotated[
        int, typer.Option(envvar="ARCHPORT_SERVE_MAX_INPUTS", min=1, help="Inputs of one request.")
    ] = 2048,
    request_timeout: Annotated[
        float, typer.Option(envvar="ARCHPORT_SERVE_REQUEST_TIMEOUT", min=0.001, help="Seconds until a 504.")
    ] = 600.0,
    drain_timeout: Annotated[
        float, typer.Option(envvar="ARCHPORT_SERVE_DRAIN_TIMEOUT", min=0, help="Seconds for what is under way.")
    ] = 30.0,
    on_demand: Annotated[
        bool,
        typer.Option(
            "--on-demand", envvar="ARCHPORT_SERVE_ON_DEMAND", help="Load a model when a request first names it."
        ),
    ] = False,
    idle_timeout: Annotated[
        float | None,
        typer.Option(envvar="ARCHPORT_SERVE_IDLE_TIMEOUT", min=0.1, help="Seconds until an unused model is let go."),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="all|N|IDS", envvar="ARCHPORT_SERVE_DEVICES", help="One process for each, behind the port."
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", envvar="ARCHPORT_SERVE_QUIET", help="No access log, table or live line.")
    ] = False,
) -> None:
    """Serve models over HTTP: OpenAI's, Cohere's, Jina's, Ollama's and Text Embeddings Inference's interfaces."""
    from archport.serving.extra import check_installed

    check_installed()
    import logging

    from archport.serving.devices import DEVICE, run_on
    from archport.serving.security import keys_of
    from archport.serving.server import Server, set_up_logs, wanted
    from archport.serving.settings import Limits, Settings

    apart = adapters_of(adapters, adapter)
    if len(model) > 1 and (apart is not None or adapter is not None):
        flag = "--adapter belongs" if apart is None else "--adapters belong"
        raise typer.BadParameter(f"{flag} to one --model; serve an adapter by its own name: -m ID=ADAPTER")
    # The variable reaches the processes of each device as well.
    if devices is not None and DEVICE not in os.environ:
        raise typer.Exit(run_on(devices, sys.argv[1:], host, port, note))
    limits = Limits(
        queue_tokens=queue_tokens, queue_requests=queue_requests, inputs=max_inputs, seconds=request_timeout
    )
    settings = Settings(
        host=host,
        port=port,
        keys=keys_of(_keys(api_key_file)),
        key_requests=key_requests,
        insecure=insecure,
        hosts=tuple(allowed_host or ()),
        origins=tuple(cors_origin or ()),
        token_ids=token_ids.value,
        any_dimensions=any_dimensions,
        chat_share=chat_share,
        batch_tokens=batch_tokens,
        on_demand=on_demand,
        idle_seconds=idle_timeout,
        drain_seconds=drain_timeout,
        limits=limits,
    )
    set_up_logs(logging.WARNING if quiet else logging.INFO)
    options: dict[str, Any] = {
        "dtype": dtype, "revision": revision, "max_context": max_context, "adapter": adapter, "adapters": apart,
    }  # fmt: skip
    models = [wanted(each, options) for each in model]
    server = Server(settings, models, memory_budget=memory_budget, started=lambda each: _started(each, quiet=quiet))
    code = server.run()
    if code:
        raise typer.Exit(code)


def _keys(path: Path | None) -> list[str]:
    """Lines that hold keys, of the file and of the environment."""
    found = os.environ.get("ARCHPORT_API_KEYS", "").split(",")
    if path is not None:
        try:
            found += path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(f"--api-key-file {str(path)!r} can't be read: {error}") from error
        if not any(line.strip() and not line.strip().startswith("#") for line in found):
            raise InputError(f"--api-key-file {str(path)!r} holds no key; expected one per line")
    return found


def _started(server: Server, *, quiet: bool) -> None:
    host = f"[{server.settings.host}]" if ":" in server.settings.host else server.settings.host
    address = f"http://{host}:{server.port}"
    if quiet:
        return
    for name, value in _table(server, address):
        note(f"{name:>10}  {value}")
    if sys.stderr.isatty():
        threading.Thread(target=_live, args=(server,), daemon=True).start()


def _table(server: Server, address: str) -> list[tuple[str, str]]:
    """What is served, where, and with what."""
    from archport.contract.sizes import format_bytes
    from archport.serving.endpoints import ENDPOINTS

    rows = [("serving", address)]
    for served in server.registry.all:
        plan, inputs = served.alone, served.runtime.tokeniser.inputs
        about = [
            "+".join(served.capabilities), f"{served.model.max_tokens} tokens", str(plan.dtype),
            f"revision {served.revision}" if served.revision else "from a folder",
        ]  # fmt: skip
        if "embed" in served.capabilities:
            head = served.runtime.head
            about.append(f"{served.model.dimensions} dimensions, {'+'.join(head.pooling)} ({head.source})")  # pyright: ignore[reportAttributeAccessIssue]
            about.append(f"prompt {inputs.default_prompt or 'none'}")
        rows.append(("model", f"{served.id}: {', '.join(about)}"))
    device = server.registry.all[0].model.device if server.registry.all else None
    if device is not None:
        rows.append(("device", f"{device.name}, budget {format_bytes(server.budget)} for all models"))
    tags = dict.fromkeys(each.tag for each in ENDPOINTS if each.tag != "operations")
    rows.append(("interfaces", f"{', '.join(tags)}; {address}/openapi.json lists them"))
    rows.append(("keys", f"{len(server.settings.keys)}" if server.settings.keys else "none asked for"))
    return rows


def _live(server: Server) -> None:
    """One line that says what goes on, every second."""
    state, before, tokens = server.state, time.monotonic(), 0.0
    while not state.draining:
        time.sleep(1.0)
        now, total = time.monotonic(), _total(state)
        rate = (total - tokens) / (now - before)
        before, tokens = now, total
        line = f"{state.active} requests, {state.scheduler.waiting_tokens:,} tokens wait, {rate:,.0f} tokens/s"
        sys.stderr.write(f"\r\x1b[2K{line}")
        sys.stderr.flush()


def _total(state: Any) -> float:
    """Tokens that the device has computed."""
    family = state.metrics.window_tokens.collect()[0]
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total"))

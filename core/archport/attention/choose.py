"""Choosing the path of a call: the fastest backend within the call's limits, with the reasons against every other.

Depends on shapes, element type, device facts and fixed limits only, so the same call takes the same path tomorrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from archport.contract.attention import AttentionCall, AttentionPath, Backend, Price, missing_features, unsuited
from archport.contract.deprecation import spelt
from archport.contract.device import DeviceFacts
from archport.contract.errors import InputError

# The one backend that is never taken for being fast.
CHUNKED = "chunked"


def choose(
    call: AttentionCall, device: DeviceFacts, backends: Sequence[Backend], pin: str | None = None
) -> AttentionPath:
    """The path of `call` on `device`.

    Chunked runs when no other backend keeps the limits, when `limits.force_chunk` asks for it, or when pinned. When
    nothing keeps the limits the path that needs least is returned with `excess` set.

    Args:
        backends: in order of preference, for equal estimates.
        pin: the name of the backend to take.

    Raises:
        InputError: when no backend accepts the call, or the pinned one refuses it or does not exist.
    """
    pin = spelt(pin)
    against: dict[str, str] = {}
    usable: list[tuple[Backend, Price]] = []
    for backend in backends:
        if pin is not None and backend.name != pin:
            against[backend.name] = f"`{pin}` is pinned"
            continue
        reasons = unsuited(backend, device) or missing_features(backend, call) or backend.reasons_against(call, device)
        if reasons:
            against[backend.name] = "; ".join(reasons)
        else:
            usable.append((backend, backend.price(call, device)))
    if not usable:
        raise InputError(_nothing(call, device, against, pin))
    chosen, price, excess, priced = _best(call, device, usable)
    # What comes next best first, then what can't run the call.
    return AttentionPath(call, chosen, price, tuple((priced | against).items()), excess)


def _best(
    call: AttentionCall, device: DeviceFacts, usable: list[tuple[Backend, Price]]
) -> tuple[Backend, Price, str, dict[str, str]]:
    """The backend to take, its price and what it exceeds, and what speaks against the others, the next best first."""
    against: dict[str, str] = {}
    priced = [(backend, price, price.excess(call, device)) for backend, price in usable]
    chunked = [entry for entry in priced if entry[0].name == CHUNKED]
    if call.limits.force_chunk and chunked:
        best = chunked[0]
        why = f"chunked is asked for from {call.limits.chunk_threshold:,} keys on"
    else:
        fitting = [entry for entry in priced if not entry[2]]
        plain = [entry for entry in fitting if entry[0].name != CHUNKED]
        if plain or fitting:
            best = min(plain or fitting, key=lambda entry: entry[1].seconds)
        else:
            best = min(priced, key=lambda entry: entry[1].transient)
        why = ""
    for backend, price, excess in sorted(priced, key=lambda entry: (bool(entry[2]), entry[1].seconds)):
        if backend is best[0]:
            continue
        if why:
            against[backend.name] = why
        elif excess:
            against[backend.name] = excess
        elif backend.name == CHUNKED:
            against[backend.name] = "other paths keep the limits without merging chunks"
        else:
            against[backend.name] = f"about {price.seconds * 1e3:.3g} ms against {best[1].seconds * 1e3:.3g} ms"
    return *best, against


def _nothing(call: AttentionCall, device: DeviceFacts, against: dict[str, str], pin: str | None) -> str:
    shape = (
        f"q ({call.B}, {call.n_heads}, {call.q_len}, {call.head_dim}), k ({call.B}, {call.n_kv_heads}, {call.kv_len}, "
        f"{call.head_dim}), v head_dim {call.v_head_dim}, {call.dtype}, mask {call.mask}"
        f"{''.join(f', {name}' for name in call.features)} on {device.name}"
    )
    if pin is not None and pin not in {name for name, why in against.items() if "is pinned" not in why}:
        names = ", ".join(sorted(against)) or "none"
        return f"attention backend {pin!r} does not exist; expected one of: {names}"
    reasons = "; ".join(f"{name}: {why}" for name, why in against.items() if "is pinned" not in why)
    what = f"attention backend {pin!r} refuses" if pin is not None else "no attention backend accepts"
    return f"{what} {shape}. {reasons}"


@dataclass(slots=True)
class Chooser:
    """A PathChooser over fixed backends that remembers its answers for one device.

    Args:
        backends: in order of preference.
        most: answers that are remembered.
    """

    backends: tuple[Backend, ...]
    most: int = 4096
    _device: DeviceFacts | None = field(default=None, init=False, repr=False)
    _known: dict[tuple[AttentionCall, str | None], AttentionPath] = field(
        default_factory=dict["tuple[AttentionCall, str | None]", AttentionPath], init=False, repr=False
    )

    def __call__(self, call: AttentionCall, device: DeviceFacts, pin: str | None = None) -> AttentionPath:
        if device is not self._device or len(self._known) > self.most:
            self._device = device
            self._known.clear()
        key = (call, pin)
        if key not in self._known:
            self._known[key] = choose(call, device, self.backends, pin)
        return self._known[key]

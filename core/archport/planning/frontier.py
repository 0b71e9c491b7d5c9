"""What fits: one request shape planned at many contexts and numbers of rows, for one model on one device.

Every point that fits is a plan of its own; nothing between two points is guessed. Knows no page and no terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from archport.contract import AdmissionRefused, ArchSpec, Quantization
from archport.planning.batch import Request
from archport.planning.plan import Plan

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
# Contexts of a frontier: the longest ones, each 1.33 or 1.5 times the one before.
CONTEXTS = 16
# From the heaviest: what it is called, and how its matrices are packed.
PACKED: tuple[tuple[str, Quantization], ...] = tuple(
    (f"{bits}-bit", Quantization(bits=bits, group_size=64)) for bits in (8, 6, 4)
)

Plans = Callable[[Request], Plan]


@dataclass(frozen=True, slots=True)
class Point:
    """One context and number of rows: the plan, or why there is none.

    Args:
        context: tokens per row, new ones included.
        batch: rows.
        planned: False where fewer rows were refused already, whose refusal it has.
    """

    context: int
    batch: int
    plan: Plan | None
    refusal: AdmissionRefused | None
    planned: bool = True

    @property
    def fits(self) -> bool:
        return self.plan is not None


def contexts_of(limit: int) -> tuple[int, ...]:
    """Contexts to plan, ascending, the longest being the model's limit: powers of two, and one and a half of them."""
    steps = {limit}
    power = 1
    while power <= limit:
        steps |= {power, power * 3 // 2} if power * 3 // 2 <= limit else {power}
        power *= 2
    return tuple(sorted(steps)[-CONTEXTS:])


def frontier(
    plans: Plans, contexts: Sequence[int], batches: Sequence[int] = BATCHES, *, new_tokens: int = 0, pack: bool = False
) -> tuple[Point, ...]:
    """A plan for every context and number of rows, contexts outermost.

    Rows beyond a number that does not fit can't fit either: they have that number's refusal, as what would fit is
    looked for at length.

    Args:
        contexts, batches: ascending.
        new_tokens: of each context; 0 plans embeddings. A context that is not longer has one token of prompt.
        pack: as `Request.pack`.
    """
    made: list[Point] = []
    for context in contexts:
        refused: Point | None = None
        for batch in batches:
            if refused is not None:
                made.append(replace(refused, batch=batch, planned=False))
                continue
            made.append(point(plans, context, batch, new_tokens=new_tokens, pack=pack))
            refused = None if made[-1].fits else made[-1]
    return tuple(made)


def point(plans: Plans, context: int, batch: int, *, new_tokens: int = 0, pack: bool = False) -> Point:
    """The plan of some rows of one length, or the refusal."""
    new = min(new_tokens, context - 1)
    request = Request(lengths=[context - new] * batch, cached=[0] * batch, new_tokens=new, pack=pack)
    try:
        return Point(context, batch, plans(request), None)
    except AdmissionRefused as refusal:
        return Point(context, batch, None, refusal)


def longest_context(plans: Plans, limit: int, *, new_tokens: int = 0, pack: bool = False) -> int:
    """The longest context of one row that fits, in tokens; 0 where none does."""
    whole = point(plans, limit, 1, new_tokens=new_tokens, pack=pack)
    if whole.refusal is None:
        return limit
    # Of the prompt: the planner has looked for it.
    fits = whole.refusal.max_tokens_that_fit
    return fits + min(new_tokens, limit - 1) if fits else 0


def variants_of(spec: ArchSpec) -> Mapping[str, ArchSpec]:
    """The same model in 16 or 32 bits and packed, by name, the heaviest first; of estimated weights."""
    plain = {spec.dtype: replace(spec, quantization=None)}
    return plain | {name: replace(spec, quantization=packed) for name, packed in PACKED}

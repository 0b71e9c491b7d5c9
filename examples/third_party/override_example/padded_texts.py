"""Hide padding by a mask, whatever the rows: one policy hook for an encoder that is asked about ever new texts.

    import padded_texts
    model = engine.load(name, overrides=[padded_texts])

Where rows differ in length the planner prices two ways for them: a call per document, and one call that hides what is
after each row's end. The first is priced document by document, since lengths that were never seen have no known price.
Whoever knows that the second is as good on a device, as it is where kernels take masks, halves the time to plan fresh
texts: `benchmarks/policy_hooks_cpu.py`.
"""

from __future__ import annotations

from archport.contract import AttentionLayer, BatchShape, LayerSpec, MaskPolicy, hookimpl


@hookimpl
def archport_mask_policy(layer: LayerSpec, shape: BatchShape) -> MaskPolicy | None:
    if shape.ragged and isinstance(layer, AttentionLayer) and layer.semantics == "bidirectional":
        return MaskPolicy("key_padding", "texts are new every time, and one way is planned sooner than two")
    return None

"""Core answers to the head and inputs hooks: what the checkpoint's own pipeline files say. Asked after every plugin."""

from __future__ import annotations

from archport.contract import CheckpointView, Head, TextInputs, hookimpl


@hookimpl(trylast=True)
def archport_head(checkpoint: CheckpointView) -> Head:
    return checkpoint.stored_head()


@hookimpl(trylast=True)
def archport_inputs(checkpoint: CheckpointView) -> TextInputs:
    return checkpoint.stored_inputs()

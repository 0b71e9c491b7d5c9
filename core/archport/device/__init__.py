"""What this machine is: its BLAS, its memory and what MLX says of its device. Knows nothing of models.

Import the submodules by name. This page imports nothing, because `archport.device.blas` runs when archport is imported
and has to be cheap.
"""

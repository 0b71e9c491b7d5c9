"""archport in the programs people have: one file per host library, which is imported only by that file's users.

Each hands texts to a `Model` and vectors back in the host's shapes. Knows nothing of how a model runs.
"""

"""One module per family: the trunk, and the heads whose weights lie beside it."""

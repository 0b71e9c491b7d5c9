"""A liar in a file of its own, because what it does wrong is being imported: it reads a file."""

from pathlib import Path

from toy import archport_build, archport_claim, archport_examples  # noqa: F401

HERE = Path("/etc/hostname" if Path("/etc/hostname").exists() else __file__).read_bytes()

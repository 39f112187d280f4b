"""Which code made a result."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Short hash of the commit, with -dirty where files differ from it; "unknown" outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        told = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()

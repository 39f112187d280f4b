"""Which code made a result."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Short hash of the commit, with -dirty where code differs from it; "unknown" outside of a repository."""
    try:
        head = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def git(*arguments: str) -> str:
    told = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return told.stdout.strip()

"""What takes long is made by one of the test processes and read by the others."""

import fcntl


def made_once(tmp_path_factory, name, make):
    """The text `make()`, of this run of the tests."""
    folder = tmp_path_factory.getbasetemp()
    if folder.name.startswith("popen-"):  # of a process among several
        folder = folder.parent
    path = folder / f"{name}.txt"
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.write_text(make())
    return path.read_text()

"""State belongs to its data: what it was made for is saved with it and compared before anything is loaded."""

from collections.abc import Mapping
from typing import Any

from fastlnl.errors import StateError


def check_fingerprint(name: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse state that was made for other data or with other options.

    Args:
        name: of the state, for the message.
        saved, here: its options by name; "label" is the hash of the given labels, or None where they are not known.

    Raises:
        StateError: names the first option that differs, with both values.
    """
    for key, value in here.items():
        if key != "label" and saved[key] != value:
            raise StateError(
                f"the saved {name} has {key} {saved[key]} but this one has {value}; "
                "build the criterion for the data the checkpoint was made with"
            )
    if None not in (saved["label"], here["label"]) and saved["label"] != here["label"]:
        raise StateError(
            f"the saved {name} was made with other given labels (hash {saved['label']}, here {here['label']}); "
            "resume with the same data set, noise and noise seed"
        )

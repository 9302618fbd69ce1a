"""The cluster that the environment names, for those who must not import Ray to ask."""

import os


def cluster_address() -> str | None:
    """RAY_ADDRESS, or None where a run starts a Ray of its own: it is unset, empty or "local"."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address

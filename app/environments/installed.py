"""Which environments for agents are installed: entry points of the group `basin.environments`."""

from importlib.metadata import EntryPoint, entry_points

GROUP = "basin.environments"


def installed() -> dict[str, EntryPoint]:
    """Return the installed environments by name, none of them imported.

    Of two with one name the one that is found first on the path of modules is meant.
    """
    found = reversed(tuple(entry_points(group=GROUP)))
    return dict(sorted((each.name, each) for each in found))

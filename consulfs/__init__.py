"""Mount a Consul cluster as a file system; `consulfs.consulate` is the client beneath it."""

from consulfs._version import __version__

__all__ = ["__version__"]

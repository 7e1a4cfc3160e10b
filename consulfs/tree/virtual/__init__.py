"""What is not a key: Consul's other endpoints and the mount itself, as directories and files that can be read."""

from consulfs.tree.virtual.answers import Answers
from consulfs.tree.virtual.endpoints import ENDPOINTS, NAMES
from consulfs.tree.virtual.endpoints.dc import NAME as DATACENTERS
from consulfs.tree.virtual.parts import Facts
from consulfs.tree.virtual.tree import Directory, Document, VirtualTree

__all__ = ["DATACENTERS", "ENDPOINTS", "NAMES", "Answers", "Directory", "Document", "Facts", "VirtualTree"]

"""Clusters: finding one, starting one, and saying where it is.

================  ===============================================================
``lease``         which cluster a Client gets
``embedded``      clusters of this process, shared by its clients
``cluster``       ipyparallel's Cluster; ``manager``: its ClusterManager
``launcher``      handles of a running controller and its engines
``daemon``        a process that holds a cluster
``connection``    connection files
``profiles``      IPython profile directories
``settings``      arguments, PXCOMPAT_* variables, ``pxcompat_config.py``
``app``           the command ``pxcluster``; ``staging``: ``ipython profile create --parallel``
================  ===============================================================
"""

from __future__ import annotations

from .cluster import Cluster
from .lease import Lease, acquire
from .manager import ClusterManager, clean_cluster_files

__all__ = ["Cluster", "ClusterManager", "Lease", "acquire", "clean_cluster_files"]

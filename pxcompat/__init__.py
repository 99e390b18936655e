"""ipyparallel's API on Dask and on Ray: ``import pxcompat as ipp``."""

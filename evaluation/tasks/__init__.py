"""lmms-eval's plug-in protocol wants this package; the tasks themselves lie in ``datasets/``."""

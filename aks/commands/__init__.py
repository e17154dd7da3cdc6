"""The bodies of the commands, one file each; :mod:`aks.__main__` has their list."""

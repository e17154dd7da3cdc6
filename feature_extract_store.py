"""Step 1', stored features: the same as ``aks store`` (aks/commands/store.py)."""

from aks import errors
from aks.commands.store import main

if __name__ == "__main__":
    errors.run_main(main)

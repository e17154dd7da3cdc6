"""Step 1, the scores: the same as ``aks extract`` (aks/commands/extract.py)."""

from aks import errors
from aks.commands.extract import main

if __name__ == "__main__":
    errors.run_main(main)

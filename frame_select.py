"""Step 2, the keyframes: the same as ``aks select`` (aks/commands/select.py)."""

from aks import errors
from aks.commands.select import main

if __name__ == "__main__":
    errors.run_main(main)

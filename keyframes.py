"""The keyframes of one's own videos: the same as ``aks keyframes`` (aks/commands/keyframes.py)."""

from aks import errors
from aks.commands.keyframes import main

if __name__ == "__main__":
    errors.run_main(main)

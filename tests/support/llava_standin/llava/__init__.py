"""Stands in for LLaVA-NeXT where that is not installed: the names lmms-eval imports, and no weights.

Its model looks at nothing and answers "A". What lmms-eval hands to it is what the tests are about.
"""

"""Selection rules other than the paper's, one file each: pure functions of scores, NumPy alone.

Each gets normalized scores (n,), 0 to 1, and a budget of at most n, and returns exactly as many ascending
positions; :func:`aks.strategies.fill.fill` adds what a rule lacks. Its own options are its keyword arguments
with a default. :mod:`aks.selection` lists the rules.
"""

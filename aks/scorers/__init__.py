"""Relevance scorers: one file each, all behind :class:`aks.scorers.base.Scorer`."""

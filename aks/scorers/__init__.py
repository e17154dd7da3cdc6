"""Relevance scorers, one a file. To add one, write ``aks/scorers/<name>.py`` and enter its class here.

Only ``load_scorer`` in :mod:`aks.scorers.base` imports these modules, and only the one that is asked for.
"""

SCORERS = {
    "blip": "aks.scorers.blip:BlipScorer",
    "clip": "aks.scorers.clip:ClipScorer",
    "siglip": "aks.scorers.siglip:SiglipScorer",
    "sevila": "aks.scorers.sevila:SevilaScorer",
    "conse": "aks.scorers.conse:ConseScorer",
}
# The original implementations, for those who have LAVIS installed (requirements-lavis.txt).
LAVIS_SCORERS = {
    "blip": "aks.scorers.lavis.blip:LavisBlipScorer",
    "sevila": "aks.scorers.lavis.sevila:LavisSevilaScorer",
}
DTYPES = ("float32", "float16", "bfloat16")  # of a model, by their names in torch

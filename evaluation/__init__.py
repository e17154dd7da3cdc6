"""Keyframes into lmms-eval, as a plug-in: ``LMMS_EVAL_PLUGINS=evaluation python -m lmms_eval ...``.

No file of lmms-eval, LLaVA-NeXT or qwen-vl-utils is replaced. ``models`` tells lmms-eval which of its
models have a subclass here, the tasks lie in ``datasets/`` (``--include_path datasets``).
"""

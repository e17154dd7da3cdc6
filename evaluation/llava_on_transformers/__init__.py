"""LLaVA-Video and LLaVA-OneVision out of transformers' SigLIP and Qwen2, from lmms-lab's checkpoints.

LLaVA-NeXT's package ``llava`` is on GitHub only and asks for libraries of 2024. This package computes the
same without it, and stands in for it in lmms-eval (``package.py``):

    config.py      a checkpoint's ``config.json``, and what of it is supported
    checkpoint.py  its weights, straight onto their devices
    pictures.py    frames and pictures to pixels
    model.py       pixels and a prompt to an answer
    prompts.py     questions to prompts, prompts to tokens
"""

"""What lmms-eval's plug-in protocol asks for: the models' names and classes.

It imports ``<plug-in>.models.<name>``; the search path below lets the modules keep their documented
places, ``evaluation/<name>.py``.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent.parent)]

AVAILABLE_MODELS = {
    "llava_vid": "LlavaVid",
    "llava_onevision": "LlavaOneVision",
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2p5VL",
    "qwen2_5_vl_chat": "Qwen2p5VLChat",
    "qwen3_vl": "Qwen3VL",
    "internvl3_5": "InternVL",
    "conse_qa": "ConseQA",
}

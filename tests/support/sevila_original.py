"""Run SeViLA's own code on the small weights: ``python sevila_original.py WORLD PRECISION``.

test_sevila.py starts it with SeViLA's checkout first on the module path. It reads the scores where the
original reads them, in the first ``scores`` of T5's ``generate``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sevila_setup import small_lavis


def main(world: Path, precision: str) -> None:
    """Score ``frames.npy`` for every prompt of ``prompts.json``; write the scores to ``original.json``."""
    from lavis.models.sevila_models.sevila import SeViLA
    from lavis.processors.blip_processors import BlipCaptionProcessor, BlipImageEvalProcessor
    from PIL import Image

    arguments = {"img_size": 224, "vit_precision": "fp32", "t5_model": "google/flan-t5-xl"}
    with small_lavis(world / "parts"):
        if hasattr(SeViLA, "generate_demo"):
            model = SeViLA(**arguments, task="freeze_loc_freeze_qa_vid", frame_num=4)
        else:  # our file, which replaces it
            model = SeViLA(**arguments)
    model.load_checkpoint(str(world / "sevila_pretrained.pth"))
    model.eval()
    if precision == "float32":
        model.float()
    image = BlipImageEvalProcessor(image_size=224)
    video = torch.stack([image(Image.fromarray(frame)) for frame in np.load(world / "frames.npy")])[None]

    recorded = []
    generate = model.t5_model.generate

    def recording_generate(**arguments: object) -> object:
        output = generate(**arguments)
        recorded.append(output.scores[0][:, model.yes_id].float())
        return output

    model.t5_model.generate = recording_generate
    rows = []
    for prompt in json.loads((world / "prompts.json").read_text()):
        text = BlipCaptionProcessor()(prompt)
        if hasattr(SeViLA, "generate_score"):
            rows.append(model.generate_score({"video": video, "loc_input": text})[0].float().tolist())
        else:
            recorded.clear()
            model.generate_demo(video, "Question: unused", text, keyframe_num=4)
            rows.append(recorded[0].tolist())
    (world / "original.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""Step 1': videos to frame features that any later question can be scored against, without the video.

Writes one safetensors file a video under <output_file>/<dataset_name>/<model>/. Score them with
feature_extract.py (aks extract) --features <that folder>. A run that was stopped goes on where it stopped.

    %(prog)s --dataset_name longvideobench --extract_feature_model clip --device cuda
    %(prog)s --dataset_name custom --label_file labels.json --feature_dtype float16
"""

from __future__ import annotations

import functools
from pathlib import Path

from aks import cli, errors
from aks.scorers import DTYPES


@errors.when_interrupted("finished videos are kept, the same command goes on with the others")
def main() -> int:
    """Encode and store, then say what was done; 1 if a video failed."""
    parser = cli.build_parser(__doc__, output="./features")
    step = parser.add_argument_group("this step alone")
    step.add_argument(
        "--blip_features",
        choices=("patch", "itc", "itm-e"),
        help="blip: patch (default; the vision tokens that scoring needs), itc (256 values), or itm-e (the "
        "reference's vectors, bound to the label file's questions)",
    )
    step.add_argument("--feature_dtype", choices=DTYPES, help="type on disk (default: --dtype's)")
    args = parser.parse_args()
    if args.blip_features and args.extract_feature_model != "blip":
        raise errors.UserError("--blip_features goes with --extract_feature_model blip")
    is_per_question = args.blip_features == "itm-e"
    if is_per_question and args.backend != "transformers":
        raise errors.UserError("--blip_features itm-e goes with --backend transformers")
    args.blip_head = "itc" if args.blip_features == "itc" else None
    labels = cli.load_labels_from_args(args)

    from aks.extraction.api import finish, store_features
    from aks.extraction.feature_store import FRAME_FEATURES, PER_QUESTION, FeatureStore

    # Kinds of features do not mix, so each has a folder of its own name.
    name = args.extract_feature_model + {"itc": "-itc", "itm-e": "-itm-e-question-bound"}.get(
        args.blip_features, ""
    )
    folder = Path(args.output_file).absolute() / args.dataset_name / name
    store = FeatureStore(folder, args.feature_dtype, PER_QUESTION if is_per_question else FRAME_FEATURES)
    work = functools.partial(store_features, labels, store=store)
    if args.engine == "ray":
        summary = finish(labels, store, labels.jobs, cli.run_on_ray(args, labels, store, work))
    else:
        summary = work(cli.load_scorer_from_args(args), **cli.decode_settings(args))
    status = cli.print_summary(summary, "stored")
    size = sum(path.stat().st_size for path in store.parts.glob("[!.]*.safetensors"))
    print(f"{folder}: {size / 1e6:.1f} MB")
    if not is_per_question:
        print(f"score them: feature_extract.py (or aks extract) --features {folder} ...")
    return status

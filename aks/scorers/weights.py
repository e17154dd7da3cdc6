"""Finding checkpoints, reading their weights and checking that they belong to the model.

Weights are read as safetensors or with ``torch.load(weights_only=True)``, so that no file can run code. Every
error is a :class:`~aks.errors.UserError` of one line.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from aks.errors import UserError
from aks.jsonio import read_json

LOCAL_ROOT = Path("checkpoints")  # in the working directory, see checkpoints/README.md

# One of these holds the weights of a folder in the transformers layout; the first that exists is used.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Buffers that older versions of transformers save and newer ones compute.
HARMLESS_KEYS = re.compile(r"(^|\.)position_ids$")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _describe(error: BaseException) -> str:
    """An exception's type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip(' .:')}" if lines else type(error).__name__


def resolve_checkpoint(
    checkpoint: str, *, model_type: str | Sequence[str], needs: Sequence[Sequence[str]] = ()
) -> Path:
    """Find the local folder of a checkpoint in the transformers layout; download it if there is none.

    The checkpoint is looked for as a path, then as ``checkpoints/<last part of the name>``, then on the model
    hub (or in its cache when offline).

    Args:
        checkpoint: folder or hub name (``owner/name``).
        model_type: the type of model that ``config.json`` must state, such as ``blip``, or several of them.
        needs: files that must lie beside ``config.json`` and the weights. Each is a tuple of alternatives,
            such as ``("tokenizer.json", "vocab.txt")``.

    Raises:
        UserError: no such checkpoint, a file is missing, or the model is of another type.
    """
    local = LOCAL_ROOT / Path(checkpoint).name
    for folder in (Path(checkpoint), local):
        if folder.is_dir():
            break
    else:
        if Path(checkpoint).is_file():
            raise UserError(f"{checkpoint}: is a file; give the folder that holds it and its config.json")
        if not _HUB_NAME.fullmatch(checkpoint):
            raise UserError(f"{checkpoint}: no such checkpoint folder (nor {local}), and not a hub name")
        folder = _download(checkpoint, local, needs)

    for names in (("config.json",), WEIGHT_FILES, *needs):
        if not any((folder / name).is_file() for name in names):
            raise UserError(
                f"{folder}: has no {' or '.join(names)}; get the whole checkpoint, see checkpoints/README.md"
            )
    found = _read_json(folder / "config.json").get("model_type")
    types = (model_type,) if isinstance(model_type, str) else model_type
    if found not in types:
        wanted = " or ".join(map(repr, types))
        raise UserError(f"{folder / 'config.json'}: another model: model_type is {found!r}, not {wanted}")
    for path in weight_files(folder):
        if not path.is_file():
            raise UserError(f"{folder}: has no {path.name}, which its index lists; get the whole checkpoint")
        if path.suffix == ".safetensors":
            _check_safetensors(path)
    return folder


def _download(name: str, local: Path, needs: Sequence[Sequence[str]]) -> Path:
    """Download a hub repository's configuration, tokenizer and weights, as safetensors where it has them."""
    from huggingface_hub import snapshot_download

    small = ["*.json", *(file for names in needs for file in names)]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*small, "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*small, "pytorch_model*.bin"]))
    except Exception as error:  # the hub client raises many unrelated types
        raise UserError(
            f"{name}: not in {local}, and the model hub did not give it ({_describe(error)}); on a machine "
            f"with access run: hf download {name} --local-dir {local}"
        ) from None
    return folder


def find_file(checkpoint: str, *, source: str) -> Path:
    """Find a checkpoint that is one file: a path, or a file name in ``./checkpoints``.

    Raises:
        UserError: no such file; says where to download it, ``source``.
    """
    local = LOCAL_ROOT / Path(checkpoint).name
    for path in (Path(checkpoint), local):
        if path.is_file():
            return path
    raise UserError(f"{checkpoint}: no such checkpoint file; download {source} to {local}")


def weights_identity(checkpoint: str) -> list[Any]:
    """What tells whether a checkpoint's files have changed: their sizes and dates, or the hub's commit.

    Empty for what is neither a file, a folder nor a hub name, such as the weights of an installed package.
    """
    for path in (Path(checkpoint), LOCAL_ROOT / Path(checkpoint).name):
        if path.exists():
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            states = [(file, file.stat()) for file in files if file.is_file()]
            return [[str(file.absolute()), state.st_size, state.st_mtime_ns] for file, state in states]
    if not _HUB_NAME.fullmatch(checkpoint):
        return []
    from huggingface_hub import try_to_load_from_cache

    return [str(try_to_load_from_cache(checkpoint, "config.json"))]  # its folder is the commit's


def weight_files(folder: Path) -> list[Path]:
    """The weight file of a folder, or the shards that its index lists, which may be missing."""
    name = next(name for name in WEIGHT_FILES if (folder / name).is_file())
    if not name.endswith(".index.json"):
        return [folder / name]
    shards = _read_json(folder / name).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{folder / name}: has no weight_map; download it again")
    return [folder / shard for shard in sorted(set(shards.values()))]


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.safetensors`` or PyTorch file by name, all to the CPU.

    A PyTorch file may hold the state dict itself, or a dictionary that has it under ``model``.

    Raises:
        UserError: the file is damaged, holds more than tensors, or holds no state dict.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        _check_safetensors(path)
        return load_file(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and tensor errors alike
        raise UserError(
            f"{path}: cannot be read as weights ({_describe(error)}); download it again"
        ) from None
    if isinstance(data, dict) and isinstance(data.get("model"), dict):
        data = data["model"]
    if not isinstance(data, dict) or not all(isinstance(value, torch.Tensor) for value in data.values()):
        raise UserError(f"{path}: is not a state dict (names to tensors)")
    return data


def check_keys(
    where: Path, *, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[str]
) -> None:
    """Raise if weights do not fill a model exactly: lack parameters, or have others or other shapes.

    Raises:
        UserError: a key other than ``HARMLESS_KEYS`` is among them; names three of each kind.
    """
    problems = []
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        names = sorted(key for key in keys if not HARMLESS_KEYS.search(key))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{kind}: {', '.join(names[:3])}{more}")
    if problems:
        raise UserError(f"{where}: these are the weights of another model ({'; '.join(problems)})")


def misshapen(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names that two state dicts share with tensors of different shape."""
    return [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]


def load_strict(model: torch.nn.Module, state: Mapping[str, torch.Tensor], where: Path) -> None:
    """Copy a state dict into a model, which it must fill exactly; errors as in :func:`check_keys`."""
    own = model.state_dict()
    check_keys(
        where,
        missing=own.keys() - state.keys(),
        unexpected=state.keys() - own.keys(),
        mismatched=misshapen(own, state),
    )
    model.load_state_dict(state, strict=False)  # harmless keys may be missing or unexpected


def load_pretrained(model_class: type, folder: Path, config: Any, without: str) -> Any:
    """Load one half of a model of transformers in float32 and evaluation mode.

    The weights must fill it. The layers of the other half are neither made nor read.

    Args:
        model_class: a model with a text and a vision tower.
        folder: as :func:`resolve_checkpoint` finds it.
        config: of the whole model.
        without: the half that is left out, ``text`` or ``vision``.

    Raises:
        UserError: the weights are damaged, or another model's.
    """
    config = copy.deepcopy(config)
    getattr(config, f"{without}_config").num_hidden_layers = 0
    layers = rf"^{without}_(model|encoder)\.encoder\.layers?\."
    facts = {"__module__": model_class.__module__, "_keys_to_ignore_on_load_unexpected": [layers]}
    half_class = type(model_class.__name__, (model_class,), facts)
    try:
        model, info = half_class.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_keys reports them with the other keys
        )
    except Exception as error:  # safetensors, zip, pickle, tensor and configuration errors alike
        raise UserError(
            f"{folder}: cannot be loaded as {model_class.__name__} ({_describe(error)})"
        ) from None
    check_keys(
        folder,
        missing=info["missing_keys"],
        unexpected=info["unexpected_keys"],
        # Some versions of transformers give (name, shape, shape).
        mismatched=[key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]],
    )
    for name in [name for name, _ in model.named_children() if name.startswith(f"{without}_")]:
        delattr(model, name)  # its embeddings; SigLIP 2's take 1.2 GB
    return model.float().eval().requires_grad_(False)


def load_component(load: Callable[[Path], Any], folder: Path, what: str) -> Any:
    """Load a folder's configuration, tokenizer or image processor with ``load``; an error is one line."""
    try:
        return load(folder)
    except Exception as error:  # transformers and its back ends raise many unrelated types
        raise UserError(f"{folder}: its {what} cannot be loaded ({_describe(error)})") from None


def _check_safetensors(path: Path) -> None:
    """Raise if a file's header does not account for every byte of it; reads the header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or incomplete ({_describe(error)}); download it again") from None


def _read_json(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds no JSON object; download it again")
    return data

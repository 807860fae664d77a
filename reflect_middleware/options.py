"""The settings of a Reflection, checked when it is built. Checking touches no file, network or model."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel

from reflect_middleware.cadence import Cadence, cadence
from reflect_middleware.due import Quota
from reflect_middleware.errors import ConfigurationError, MissingExtraError
from reflect_middleware.hints import rules as signal_rules
from reflect_middleware.namespaces import NamespaceRule, rule, rules
from reflect_middleware.retention import Retention
from reflect_middleware.retrieve import CountTokens, Limits, estimate_tokens
from reflect_middleware.types import ReflectionReport

RUN = ("background", "inline", "external")
APPROVAL = ("auto", "human")
DURABILITY = ("commit", "fsync", "queue")
DEFAULT_STORE = "chroma"
"""Where neither the code names one nor the ledger was moved to another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a Reflection was told. See `Reflection` for the meaning of each."""

    model: Any
    cadence: Cadence
    path: Path
    ledger_url: str
    store: Any
    """None: the one to which the ledger was moved, else the default one."""
    store_options: Mapping[str, Any]
    embeddings: Any
    rule: NamespaceRule
    read: tuple[NamespaceRule, ...]
    reward: Callable[..., Any] | None
    assess: bool
    """Whether the model judges what nobody has rewarded, before it reflects."""
    signals: tuple[str, ...]
    """Names of the rules of `hints.py` that are on."""
    decision: Callable[[list[Any], Any], Any] | None
    task: Callable[[Any], str] | None
    limits: Limits
    count_tokens: CountTokens
    reward_wait: float
    reward_timeout: float
    run: str
    approval: str
    learn: bool
    use_lessons: bool
    redact: Callable[[str], str] | None
    inject: Callable[[Mapping[str, Any]], bool] | None
    on_reflection: Callable[[ReflectionReport], Any] | None
    reflector: Any
    prompt: str | None
    reflector_budget: int
    max_lessons: int
    consolidate_every: int | None
    durability: str
    retrieve_timeout: float
    exit_timeout: float
    resume_within: float
    lease: float
    tries: int
    sample: float
    seed: int | None
    daily_tokens: int | None
    run_overrides: bool
    retention: Retention | None

    @property
    def quota(self) -> Quota:
        """What reflections may use, whoever does them."""
        return Quota(daily_tokens=self.daily_tokens)


def options(**given: Any) -> Options:
    """Check all arguments of `Reflection`.

    Raises:
        ConfigurationError: If one has a value that is not allowed.
        MissingExtraError: If one needs a package that is not installed.
    """
    path = Path(os.environ.get("REFLECT_PATH") or given.pop("path")).expanduser().absolute()
    given.pop("path", None)
    ledger, namespace = given.pop("ledger"), given.pop("namespace")
    if ledger is not None and namespace is None:
        raise ConfigurationError(
            "namespace",
            namespace,
            "a tuple such as ('acme', '{user_id}') when ledger= names a shared database",
            "A shared ledger has no safe default.",
        )
    for name in ("reward_wait", "reward_timeout", "retrieve_timeout", "exit_timeout", "resume_within", "lease"):
        _seconds(name, given[name], positive=name not in ("reward_wait", "exit_timeout"))
    for name, allowed in (("run", RUN), ("approval", APPROVAL), ("durability", DURABILITY)):
        if given[name] not in allowed:
            raise ConfigurationError(name, given[name], " | ".join(map(repr, allowed)))
    for name in ("learn", "use_lessons", "run_overrides"):
        if not isinstance(given[name], bool):
            raise ConfigurationError(name, given[name], "True or False")
    given["assess"], given["reward"] = _reward(given["reward"], given["model"], given["reflector"])
    for name in ("decision", "task", "redact", "inject", "on_reflection", "count_tokens", "reflector"):
        if given[name] is not None and not callable(given[name]):
            raise ConfigurationError(name, given[name], "a callable or None")
    for name in ("reflector_budget", "max_lessons", "tries"):
        _whole(name, given[name], 1)
    _cost(given["daily_tokens"], given["sample"])
    _whole_or_none("seed", given["seed"])
    _whole_or_none("consolidate_every", given["consolidate_every"])
    _model(given["model"])
    _retention(given["retention"])
    given["signals"] = signal_rules(given["signals"])
    return Options(
        path=path,
        ledger_url=_url(ledger, path),
        rule=rule(("default",) if namespace is None else namespace),
        read=rules(given.pop("read")),
        cadence=cadence(given.pop("every")),
        limits=_limits(given.pop("top_k"), given.pop("token_budget"), given.pop("min_similarity")),
        count_tokens=given.pop("count_tokens") or estimate_tokens,
        **given,
    )


def _reward(reward: Any, model: Any, reflector: Any) -> tuple[bool, Any]:
    """Whether the model judges, and the callable that does."""
    if reward != "self":
        if reward is not None and not callable(reward):
            raise ConfigurationError("reward", reward, "a callable, 'self' or None")
        return False, reward
    if model is None and reflector is not None:
        raise ConfigurationError("model", model, "a chat model with reward='self', beside a reflector of your own")
    return True, None


def _limits(top_k: Any, token_budget: Any, min_similarity: Any) -> Limits:
    _whole("top_k", top_k, 0)
    _whole("token_budget", token_budget, 0)
    if isinstance(min_similarity, bool) or not isinstance(min_similarity, (int, float)) or abs(min_similarity) > 1:
        raise ConfigurationError("min_similarity", min_similarity, "a cosine from -1 (no floor) to 1")
    return Limits(top_k=top_k, token_budget=token_budget, min_similarity=float(min_similarity))


def _url(ledger: Any, path: Path) -> str:
    if ledger is None:
        return f"sqlite:///{path / 'ledger.db'}"
    if not isinstance(ledger, str) or "://" not in ledger:
        raise ConfigurationError(
            "ledger",
            ledger,
            "a SQLAlchemy URL such as 'postgresql+psycopg://user:password@host/name'",
            "Use path= for a folder.",
        )
    return ledger


def _model(model: Any) -> None:
    if model is None or isinstance(model, BaseChatModel) or (callable(model) and not isinstance(model, type)):
        return
    if isinstance(model, str) and model:
        if importlib.util.find_spec("langchain") is None:
            raise MissingExtraError(f"The model name {model!r}", "langchain")
        return
    raise ConfigurationError("model", model, "a chat model, a name such as 'openai:gpt-5-mini', or None to only record")


def _retention(retention: Any) -> None:
    if not isinstance(retention, Retention | None):
        raise ConfigurationError("retention", retention, "Retention(days=…, episodes=…, megabytes=…) or None")


def _seconds(name: str, value: Any, *, positive: bool) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (positive and value == 0):
        raise ConfigurationError(name, value, f"seconds, a number {'above 0' if positive else 'from 0 on'}")


def _cost(daily_tokens: Any, sample: Any) -> None:
    if daily_tokens is not None:
        _whole("daily_tokens", daily_tokens, 1)
    if isinstance(sample, bool) or not isinstance(sample, (int, float)) or not 0 <= sample <= 1:
        raise ConfigurationError("sample", sample, "a share from 0 (none) to 1 (all)")


def _whole_or_none(name: str, value: Any) -> None:
    if value is not None:
        _whole(name, value, 0)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(name, value, f"a whole number from {least} on")

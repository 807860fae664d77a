"""Names that every backend allows for namespaces, which are any text."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reflect_middleware.types import Namespace


def hashed(namespace: Namespace) -> str:
    """48 hexadecimal digits, other ones for every namespace."""
    return hashlib.sha256(json.dumps(namespace, ensure_ascii=True).encode()).hexdigest()[:48]

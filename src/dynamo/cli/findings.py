"""What ``dynamo doctor`` has to tell."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs
from attrs import frozen

Level: TypeAlias = Literal["ok", "note", "wrong"]


@frozen(kw_only=True)
class Finding:
    """``remedy`` is what to do, where there is something to do."""

    topic: str
    level: Level
    text: str
    remedy: str = ""

    def described(self) -> dict[str, Any]:
        return attrs.asdict(self)

"""What all tables of the configuration have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def option(default: Any, doc: str, **more: Any) -> Any:
    """A key with its default, written as an operator writes it, and its paragraph for the reference."""
    return Field(default, description=doc, **more)


class Section(BaseModel):
    """Frozen, and without a key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, arbitrary_types_allowed=True)

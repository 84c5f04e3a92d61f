"""Events of streams."""

from luciola.plugins.deepep import EventHandle, EventOverlap

__all__ = ["EventHandle", "EventOverlap"]

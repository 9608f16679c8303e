"""`Section`, the base of the settings' frozen records.

A frozen dataclass compiles six methods for each class when it is imported. For twenty classes with a hundred fields
that was a sixth of the time of `lipsyncd status`. These classes share methods that look at the fields when called.
"""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from typing import Any, NoReturn, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Section:
    """Each subclass is a dataclass: `fields` and `replace` of `dataclasses` work. No field can be assigned."""

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        own: tuple[Any, ...] = fields(self)  # type: ignore[arg-type]
        given = dict(zip([item.name for item in own], values, strict=False))
        if len(values) > len(own) or given.keys() & named or named.keys() - {item.name for item in own}:
            raise TypeError(f"{type(self).__name__}() got {len(values)} values and {', '.join(named)}")
        given |= named
        for item in own:
            if item.name in given:
                value = given[item.name]
            elif item.default is not MISSING:
                value = item.default
            elif item.default_factory is not MISSING:
                value = item.default_factory()
            else:
                raise TypeError(f"{type(self).__name__}() lacks {item.name}")
            object.__setattr__(self, item.name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Complete the values."""

    def _compared(self) -> tuple[Any, ...]:
        return tuple([getattr(self, item.name) for item in fields(self) if item.compare])  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Section) or type(other) is not type(self):
            return NotImplemented
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def __repr__(self) -> str:
        shown = (f"{item.name}={getattr(self, item.name)!r}" for item in fields(self) if item.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

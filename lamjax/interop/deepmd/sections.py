"""Settings that are taken one by one, so that none of an input can be forgotten."""

from typing import Any

from lamjax.interop.deepmd.words import short


class Section:
    """One dict of the input whose keys are taken one by one, until none is left."""

    def __init__(
        self, content: Any, path: str, dropped: list, aliases: dict[str, tuple[str, ...]] | None = None
    ) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected keys and values, got {short(content)}.")
        names = {old: new for new, olds in (aliases or {}).items() for old in olds}
        self.left = {names.get(key, key): value for key, value in _without_comments(content).items()}
        self.path, self.dropped, self.children = path, dropped, []

    def name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def peek(self, key: str) -> Any:
        return self.left.get(key) or {}

    def take(self, key: str, default: Any = None) -> Any:
        value = self.left.pop(key, default)
        return default if value is None else value

    def need(self, key: str) -> Any:
        if self.left.get(key) is None:
            raise ValueError(f"{self.name(key)} is missing. Add it, as DeePMD-kit needs it too.")
        return self.left.pop(key)

    def section(self, key: str, aliases: Any = None) -> "Section":
        """The dict of a key, empty where there is none; `close` looks at it too."""
        child = Section(self.take(key, {}), self.name(key), self.dropped, aliases)
        self.children.append(child)
        return child

    def rest(self) -> dict:
        """All keys that are left, to be checked by the caller."""
        left, self.left = self.left, {}
        return left

    def note(self, key: str, reason: str) -> None:
        self.dropped.append((self.name(key), reason))

    def drop(self, reason: str, *keys: str) -> None:
        for key in keys:
            if key in self.left:
                self.note(key, reason)
                del self.left[key]

    def refuse(self, remedy: str, **supported: Any) -> None:
        """Options that must be absent, null or have the one value that is supported."""
        for key, value in supported.items():
            got = self.left.pop(key, value)
            if got not in (value, None):
                raise ValueError(f"{self.name(key)} = {short(got)} is not supported (only {value!r}). {remedy}")

    def close(self) -> None:
        """ValueError if a key is left, here or below."""
        for child in self.children:
            child.close()
        if self.left:
            raise ValueError(f"{self.name(min(self.left))} is no key that lamjax knows. Remove it if it is a mistake.")


def _without_comments(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_comments(v) for key, v in value.items() if not key.startswith("_")}
    return value

"""Running: what is started on entering `with` and closed on leaving it, also when its start fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Running(ABC):
    """`with` for something that has `start` and `close`."""

    @abstractmethod
    def start(self) -> None:
        """Start it, and return when it works."""

    @abstractmethod
    def close(self) -> None:
        """End it and remove what it left. Safe to call twice."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from dynamo.runtime import api, depends, endpoint, service


@dataclass
class Word:
    text: str
    by: str  # whom it passed


@service(namespace="hello", workers=2)
class Backend:
    """Makes the words, as a model makes tokens."""

    def __init__(self, pause_s: float = 0.1) -> None:  # a key of config.yaml
        self.pause_s = pause_s

    @endpoint(idempotent=True)
    async def generate(self, prompt: str) -> AsyncIterator[Word]:
        for text in prompt.split():
            yield Word(text, f"Backend {os.getpid()}")
            await asyncio.sleep(self.pause_s)


@service(namespace="hello", workers=2)
class Middle:
    """Makes a prompt of what was asked, and passes on each word as it comes."""

    backend = depends(Backend)

    @endpoint(idempotent=True)
    async def greet(self, name: str) -> AsyncIterator[Word]:
        async for word in self.backend.generate(f"Hello {name}, nice to meet you!"):
            yield Word(word.text, f"Middle {os.getpid()} < {word.by}")


@service(namespace="hello")
class Frontend:
    middle = depends(Middle)

    @api
    async def greet(self, name: str = "world") -> AsyncIterator[Word]:
        """Greets somebody, word by word."""
        async for word in self.middle.greet(name):
            yield Word(word.text, f"Frontend {os.getpid()} < {word.by}")

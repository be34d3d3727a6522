"""Serve an artifact over HTTP, many requests at once: FastAPI and uvicorn around bitstill.runtime.

    pip install bitstill tokenizers fastapi uvicorn      # no torch, no transformers
    BITSTILL_ARTIFACT=student-1bit uvicorn examples.serve:app

    curl -s localhost:8000/classify -H 'content-type: application/json' -d '{"texts": ["a warm and funny film"]}'

Texts that come while a batch is being computed wait and make the next one, up to MOST together: under load, batches grow by
themselves, and a text that comes alone is computed at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

import bitstill.runtime

MOST, WAITING = 32, 1024
"""Texts in a batch, and in the queue: whoever comes beyond that is told to come again later."""
LONGEST = 1 << 15
"""Characters of a text: all of it is cut into tokens while others wait, and the model reads the first few hundred."""


class Texts(BaseModel):
    """What is asked."""

    texts: list[Annotated[str, Field(max_length=LONGEST)]] = Field(min_length=1, max_length=MOST)


class Batcher:
    """Answers texts in batches, one batch at a time, in a thread beside the event loop."""

    def __init__(self, folder: Path) -> None:
        self.model = bitstill.runtime.load(folder)
        outputs = self.model(input_ids=np.zeros((1, 1), np.int64)).shape[1:]
        if len(outputs) != 1 or self.model.head.scores == "identity":
            raise SystemExit(f"{folder}: wanted a model that classifies texts; change `answer` for other models")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(self.model.longest or 512)
        self.queue: asyncio.Queue[tuple[str, asyncio.Future[np.ndarray]]] = asyncio.Queue(WAITING)

    def answer(self, texts: list[str]) -> np.ndarray:
        """Probabilities, (texts, classes): of one class among all, or of each label by itself."""
        encoded = self.tokenizer.encode_batch(texts)
        parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        names = [each.name for each in self.model.program.inputs]
        logits = self.model(**{name: np.array([getattr(each, parts[name]) for each in encoded]) for name in names})
        return self.model.head.probabilities(logits)

    async def ask(self, texts: list[str]) -> list[np.ndarray]:
        """Wait for the answers to some texts."""
        if self.queue.maxsize - self.queue.qsize() < len(texts):
            raise HTTPException(503, "too many texts are waiting", headers={"Retry-After": "1"})
        answers = [asyncio.get_running_loop().create_future() for _ in texts]
        for waiting in zip(texts, answers, strict=True):
            self.queue.put_nowait(waiting)
        return await asyncio.gather(*answers)

    async def work(self) -> None:
        """Answer whatever waits, for ever."""
        while True:
            batch = [await self.queue.get()]
            while len(batch) < MOST and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            try:
                found = await asyncio.to_thread(self.answer, [text for text, _ in batch])
            except Exception as error:  # whoever asked is told; the next batch is another
                found = [error] * len(batch)
            for (_, waiting), one in zip(batch, found, strict=True):
                if waiting.cancelled():
                    continue
                if isinstance(one, Exception):
                    waiting.set_exception(one)
                else:
                    waiting.set_result(one)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load once, before the first request."""
    app.state.batcher = Batcher(Path(os.environ["BITSTILL_ARTIFACT"]))
    worker = asyncio.create_task(app.state.batcher.work())
    yield
    worker.cancel()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(RequestValidationError)
async def refuse(_request: Request, error: RequestValidationError) -> JSONResponse:
    """What was wrong and where, without what was given: that may be long, or no Unicode."""
    return JSONResponse({"detail": [{"loc": each["loc"], "msg": each["msg"]} for each in error.errors()]}, 422)


@app.post("/classify")
async def classify(asked: Texts, request: Request) -> list[dict[str, float]]:
    """For each text, the probability of each class or label."""
    batcher = request.app.state.batcher
    found = await batcher.ask(asked.texts)
    labels = batcher.model.labels or tuple(map(str, range(len(found[0]))))
    return [dict(zip(labels, map(float, one), strict=True)) for one in found]

"""Serve an artifact over HTTP, many requests at once: FastAPI and uvicorn around bitstill.runtime.

    pip install bitstill tokenizers fastapi uvicorn      # no torch, no transformers
    BITSTILL_ARTIFACT=student-1bit uvicorn examples.serve:app

    curl -s localhost:8000/classify -H 'content-type: application/json' -d '{"texts": ["a warm and funny film"]}'

Texts that arrive while a batch is being computed wait for the next one, of up to MOST texts: batches grow under load, and a
text that arrives alone is computed immediately.
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
"""Maximum number of texts in a batch, and in the queue; further requests get status 503."""
LONGEST = 1 << 15
"""Maximum length of a text in characters. Other texts wait while it is tokenized, and the model reads only its beginning."""


class Texts(BaseModel):
    """Body of a request."""

    texts: list[Annotated[str, Field(max_length=LONGEST)]] = Field(min_length=1, max_length=MOST)


class Batcher:
    """Classifies texts in batches, one batch at a time, in a thread beside the event loop."""

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
        """Probabilities (texts, classes), over all classes or independent for each label."""
        encoded = self.tokenizer.encode_batch(texts)
        parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        names = [each.name for each in self.model.program.inputs]
        logits = self.model(**{name: np.array([getattr(each, parts[name]) for each in encoded]) for name in names})
        return self.model.head.probabilities(logits)

    async def ask(self, texts: list[str]) -> list[np.ndarray]:
        """Queue texts and wait for their answers."""
        if self.queue.maxsize - self.queue.qsize() < len(texts):
            raise HTTPException(503, "too many texts are waiting", headers={"Retry-After": "1"})
        answers = [asyncio.get_running_loop().create_future() for _ in texts]
        for waiting in zip(texts, answers, strict=True):
            self.queue.put_nowait(waiting)
        return await asyncio.gather(*answers)

    async def work(self) -> None:
        """Answer queued texts in an endless loop."""
        while True:
            batch = [await self.queue.get()]
            while len(batch) < MOST and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            try:
                found = await asyncio.to_thread(self.answer, [text for text, _ in batch])
            except Exception as error:  # passed to the callers; the next batch is not affected
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
    """Load the model once, before the first request."""
    app.state.batcher = Batcher(Path(os.environ["BITSTILL_ARTIFACT"]))
    worker = asyncio.create_task(app.state.batcher.work())
    yield
    worker.cancel()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(RequestValidationError)
async def refuse(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Report what is wrong and where, without the input, which may be long or not Unicode."""
    return JSONResponse({"detail": [{"loc": each["loc"], "msg": each["msg"]} for each in error.errors()]}, 422)


@app.post("/classify")
async def classify(asked: Texts, request: Request) -> list[dict[str, float]]:
    """Probability of each class or label, for each text."""
    batcher = request.app.state.batcher
    found = await batcher.ask(asked.texts)
    labels = batcher.model.labels or tuple(map(str, range(len(found[0]))))
    return [dict(zip(labels, map(float, one), strict=True)) for one in found]

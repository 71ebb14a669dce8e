"""TensorBoard's projector, without its browser."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.application import TensorBoardWSGI
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client, TestResponse

from tests.support.values import there


class Projector:
    """TensorBoard's projector, asked as the browser asks it."""

    def __init__(self, logdir: Path) -> None:
        self.multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir))
        self.logdir = str(logdir)
        self.multiplexer.Reload()
        provider = MultiplexerDataProvider(self.multiplexer, self.logdir)
        plugin = ProjectorPlugin(TBContext(logdir=self.logdir, data_provider=provider))
        self.client = Client(TensorBoardWSGI([plugin], data_provider=provider))

    def look_again(self) -> None:
        self.multiplexer.AddRunsFromDirectory(self.logdir)
        self.multiplexer.Reload()

    def get(self, route: str, **query: object) -> TestResponse:
        response = self.client.get(f"/data/plugin/projector/{route}", query_string=query)
        assert response.status_code == 200, response.text
        return response

    def read(self, run: str) -> tuple[NDArray[np.float32], list[str], list[list[str]], NDArray[np.uint8], list[int]]:
        """Tensor, header, rows of metadata, sprite and the size of its pictures."""
        (embedding,) = there(self.get("info", run=run).json)["embeddings"]
        query = {"run": run, "name": embedding["tensorName"]}
        tensor = np.frombuffer(self.get("tensor", **query, num_rows=100_000).data, np.float32)
        header, *rows = (line.split("\t") for line in self.get("metadata", **query).text.splitlines())
        atlas = np.asarray(Image.open(io.BytesIO(self.get("sprite_image", **query).data)))
        return tensor.reshape(embedding["tensorShape"]), header, rows, atlas, embedding["sprite"]["singleImageDim"]

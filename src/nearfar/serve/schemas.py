"""How bodies and answers look, for OpenAPI. Answers are written by hand, which is faster; a test compares both."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Base64 = Annotated[str, Field(description="An image file in base64; a data: address is taken too.")]


class Images(BaseModel):
    """One image, or several."""

    model_config = ConfigDict(extra="forbid")

    image: Base64 | None = None
    images: Annotated[list[Base64] | None, Field(min_length=1)] = None


class NewItems(Images):
    """Images of one class, to be added."""

    label: Annotated[str, Field(min_length=1, max_length=200, description="The class, known or new.")]


class Embeddings(BaseModel):
    """Vectors of images, in their order."""

    model: Annotated[str, Field(description="SHA-256 of the model that made them.")]
    embeddings: list[list[float]]


class Neighbor(BaseModel):
    """An image of the index."""

    id: int
    name: str
    label: Annotated[str | None, Field(description="null where the image has none.")]
    score: Annotated[float, Field(description="Cosine or dot product, greater is nearer; for Euclidean runs the distance.")]


class Found(BaseModel):
    """The nearest of one image, nearest first, and where it belongs among them."""

    neighbors: list[Neighbor]
    position: Annotated[list[float], Field(description="x and y on the map, from 0 to 1.")]


class SearchResults(BaseModel):
    """For each image, in their order."""

    results: list[Found]


class Prediction(Found):
    """What is said of one image."""

    label: Annotated[str, Field(description="The class, or 'unknown' where it is not sure enough.")]
    voted: Annotated[str, Field(description="The class of the most votes.")]
    known: bool
    probability: Annotated[float, Field(ge=0, le=1, description="Calibrated: that 'voted' is right.")]
    votes: Annotated[float, Field(ge=0, le=1, description="Share of the neighbours' vote.")]


class Predictions(BaseModel):
    """For each image, in their order."""

    results: list[Prediction]


class Item(BaseModel):
    """An image of the index."""

    id: int
    name: str
    label: str


class Added(BaseModel):
    """What was added; images that were there already have the ids that they had."""

    items: list[Item]
    new_class: bool


class Items(BaseModel):
    """Added images, newest first."""

    items: list[Item]
    total: int


class Removed(BaseModel):
    """What was removed."""

    removed: int


class ClassOf(BaseModel):
    """A class of the index."""

    name: str
    images: int
    trained: bool


class Input(BaseModel):
    """What images become before they are embedded."""

    channels: int
    size: list[int]
    ink: Annotated[str | None, Field(description="Of what is drawn: 'light' or 'dark'; null for colour.")]


class Limits(BaseModel):
    """What a request may have."""

    body_bytes: int
    pixels: int
    images: int
    k: int


class ModelInfo(BaseModel):
    """The run in service."""

    name: str
    recipe: str
    model: str
    engine: str
    nearfar: str
    dimensions: int
    metric: str
    input: Input
    classes: list[ClassOf]
    images: int
    added: int
    k: Annotated[int, Field(description="Neighbours that vote; 0 while fewer than two images have a label.")]
    precision: float
    needs_key: bool
    limits: Limits
    data: str | None


class Map(BaseModel):
    """Points of the index in the plane, as columns."""

    method: str
    classes: list[str]
    x: list[float]
    y: list[float]
    label: Annotated[list[int], Field(description="Numbers of classes; -1 for images without a label.")]
    id: list[int]


class Health(BaseModel):
    """Whether all is well, and if not, why."""

    status: str
    detail: str | None = None

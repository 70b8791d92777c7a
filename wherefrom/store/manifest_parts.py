"""The parts of a manifest: what it records of the model, the encoder, the corpus and the rest.

All records are frozen, refuse unknown keys and hold finite numbers only.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast, get_args

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from wherefrom.errors import CorpusError
from wherefrom.records import Bits

__all__ = [
    "MAX_SKIPPED_LISTED",
    "AcceleratorKind",
    "AcceleratorRecord",
    "AdapterRecord",
    "BackgroundRecord",
    "ChoiceRecord",
    "ColumnType",
    "CorpusRecord",
    "Count",
    "CurvatureRecord",
    "Dimension",
    "EncoderRecord",
    "FidelityRecord",
    "Files",
    "InputRecord",
    "LayerRecord",
    "ModelRecord",
    "ObjectiveRecord",
    "Record",
    "Size",
    "TriedRecord",
]

MAX_SKIPPED_LISTED = 1000

ColumnType = Literal["string", "int64", "float64", "bool"]
AcceleratorKind = Literal["faiss-flat", "faiss-sq8", "faiss-rabitq", "lance-ivf"]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Size = Annotated[int, Field(gt=0, lt=1 << 53)]
# What Arrow counts the entries of a list with.
Dimension = Annotated[int, Field(gt=0, lt=1 << 31)]
# What is shown to people stays on its line.
_Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
# Paths within a folder, which no part of leads out of, and SHA-256 in hexadecimal.
Files = dict[
    Annotated[str, Field(max_length=1000, pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")],
    Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")],
]
_Some = Annotated[tuple[float, ...], Field(min_length=1)]
# fmt: off
_Dtype = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
]
# fmt: on


class Record(BaseModel):
    """Frozen, without unknown keys, of finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AdapterRecord(Record):
    """The LoRA adapter on a model.

    Attributes:
        source: Absolute path or hub id; ``None`` for one that was handed over with its model.
        sha256: Fingerprint of its weights and scaling.
    """

    source: _Name | None
    sha256: _Name


class ModelRecord(Record):
    """The model whose gradients are indexed.

    Attributes:
        kind: Where it comes from: a model or an adapter loaded from disk, or a module handed over.
        source: Absolute path or hub id, of the base where there is an adapter; ``None`` for a
            module.
        task: What it was trained for, where that is known.
        dtype: Precision of its weights.
        weights_sha256: Fingerprint of the weights, of the base where there is an adapter.
        tokenizer_sha256: Fingerprint of the tokenizer, if there is one.
        architecture: Name of the model's class, of the base where there is an adapter.
        adapter: The adapter, if there is one.
    """

    kind: Literal["huggingface", "adapter", "module"]
    source: _Name | None
    task: Literal["causal_lm", "sequence_classification", "masked_lm"] | None
    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    weights_sha256: _Name
    tokenizer_sha256: _Name | None
    architecture: _Name
    adapter: AdapterRecord | None


class LayerRecord(Record):
    """One indexed layer: its module name, its kind and the shape of its weight."""

    name: _Name
    kind: _Name
    d_in: Count
    d_out: Count
    bias: bool


class ObjectiveRecord(Record):
    """What is differentiated.

    Attributes:
        kind: Name of the objective.
        options: What else it takes to make it again, as plain values.
    """

    kind: _Name
    options: dict[str, JsonValue] = {}


class CurvatureRecord(Record):
    """The fitted curvature.

    Attributes:
        kind: Its name.
        damping: In units of a layer's mean eigenvalue.
        fisher: Where the labels of pseudo-gradients came from; ``None`` without pseudo-gradients.
        fit_documents: Number of documents it was fitted on.
        seed: Of sampled labels, and of the choice of these documents.
        report: What the fit measured about itself (``residual``, ``iterations``).
        whitened: Whether documents and queries are whitened alike, so that squared norms are
            self-influences.
    """

    kind: _Name
    damping: float
    whitened: bool
    fisher: str | None
    fit_documents: Count
    seed: int
    report: dict[str, float] = {}


class FidelityRecord(Record):
    """How well encoded scores stand for uncompressed ones, measured on a sample.

    Attributes:
        documents: Documents of the sample.
        queries: Held-out queries.
        among: How many of the best encoded documents the true ten best are looked for among.
        recall: Share of them that is found there.
        correlation: Of sums of scores over random subsets of the documents.
        noise: Root mean square error of a score, in units of the product of both
            vectors' norms.
        slope: Of encoded scores on uncompressed ones: below 1, stored scores come out too small.
    """

    documents: Count
    queries: Count
    among: Count
    recall: float
    correlation: float
    noise: float
    slope: float


class TriedRecord(Record):
    """One encoder that was measured to choose one; see :class:`FidelityRecord`."""

    encoder: str
    bytes_per_document: float
    recall: float
    correlation: float
    noise: float
    chosen: bool


class ChoiceRecord(Record):
    """How the encoder was chosen.

    Attributes:
        bytes_per_document: The budget asked for.
        fidelity: The fidelity asked for.
        documents: Documents that the candidates were measured on.
        queries: Held-out queries.
        tried: The candidates.
    """

    bytes_per_document: Count | None
    fidelity: float | None
    documents: Count
    queries: Count
    tried: tuple[TriedRecord, ...]


class EncoderRecord(Record):
    """The encoder's stages and the form in which its vectors are stored.

    Attributes:
        name: All stages, in words.
        reduce: The first stage.
        reduced: Entries it leaves.
        sketched: Coordinates that a sketch is of, if not of all.
        pca: Entries that principal components leave, if there is such a stage.
        rotate: Whether a rotation follows.
        bits: Per stored entry.
        dimension: Stored entries.
        seed: Of all stages.
        bytes_per_document: Of a code, and a document's share of the bases stored with the encoder.
        file_sha256: SHA-256 of the encoder's file.
        fidelity: What was measured of it.
        choice: How it was chosen, if it was.
    """

    name: str
    reduce: Literal["sketch", "energy", "random", "none"]
    reduced: Size
    sketched: Size | None = None
    pca: Dimension | None = None
    rotate: bool
    bits: Bits
    dimension: Dimension
    seed: int
    bytes_per_document: float
    file_sha256: str
    fidelity: FidelityRecord | None = None
    choice: ChoiceRecord | None = None


class CorpusRecord(Record):
    """The indexed documents.

    Attributes:
        documents: Rows of the index (passages count one each).
        parents: Documents before they were cut into passages.
        tokens: Scored tokens in all.
        skipped: Ids of the documents left out, the first 1000.
        skipped_count: How many were left out.
        content_sha256: Digest of the corpus as it was read.
    """

    documents: Count
    parents: Count
    tokens: Count
    skipped: Annotated[tuple[str, ...], Field(max_length=MAX_SKIPPED_LISTED)] = ()
    skipped_count: Count = 0
    content_sha256: str


class InputRecord(Record):
    """Types (numpy names) and shapes (of one example) of tensor inputs and targets."""

    dtype: _Dtype
    shape: tuple[Count, ...]
    target_dtype: _Dtype
    target_shape: tuple[Count, ...]

    @classmethod
    def of(cls, inputs: NDArray[Any], targets: NDArray[Any]) -> InputRecord:
        """The record of examples ``[n, ...]``.

        Raises:
            CorpusError: They are of a type that is not stored.
        """
        for values in (inputs, targets):
            if values.dtype.name not in get_args(_Dtype):
                raise CorpusError(
                    f"tensors are of type {values.dtype.name}; give one of "
                    f"{', '.join(get_args(_Dtype))}"
                )
        return cls(
            dtype=cast("_Dtype", inputs.dtype.name),
            shape=inputs.shape[1:],
            target_dtype=cast("_Dtype", targets.dtype.name),
            target_shape=targets.shape[1:],
        )


class AcceleratorRecord(Record):
    """A vector index of another library, made from the table and only ever asked for candidates.

    Attributes:
        kind: Its name.
        table_version: Version of the table it was made from.
        rows: Its vectors.
        dimension: Their entries.
        scale: Power of two by which the stored vectors were multiplied.
        residual: The largest norm of a stored vector minus the one it decodes to.
        largest: The largest norm of a stored vector.
        files: SHA-256 of each of its files, by their paths in the index.
        library: Name and version of the library.
    """

    kind: AcceleratorKind
    table_version: Count
    rows: Count
    dimension: Dimension
    scale: Annotated[float, Field(gt=0.0)]
    residual: Annotated[float, Field(ge=0.0)]
    largest: Annotated[float, Field(ge=0.0)]
    files: Files
    library: str


class BackgroundRecord(Record):
    """Cosines between documents, some of them in the place of queries.

    Attributes:
        pairs: Random pairs that were measured.
        queries: Distinct queries among them.
        documents: Of the index, when they were measured.
        seed: They were drawn with.
        levels: Probabilities, ascending.
        quantiles: The pairs' cosines at these levels.
        highest: Cosine of each query's strongest proponent in the index, ascending.
        lowest: Cosine of each query's strongest opponent, ascending.
    """

    pairs: Count
    queries: Count
    documents: Count
    seed: int
    levels: _Some
    quantiles: _Some
    highest: _Some
    lowest: _Some

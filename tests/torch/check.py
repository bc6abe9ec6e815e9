#!/usr/bin/env python3
"""Rebuilds Weighhouse's models in PyTorch and compares what they say.

    python tests/torch/check.py FOLDER

FOLDER holds models (`NAME.safetensors`, as `weighhouse model export` writes them) and beside each a `NAME.json`:

    {"rows": [{"numbers": [...], "ids": [...], "steps": [{"numbers": [...], "ids": [...]}, ...]}, ...],
     "outputs": [[...], ...], "predictions": [[...], ...]}

`rows` are what a model takes: numbers on -1 to 1 and the ids of categories, in the order of the schema, and the same for
each step of the row's sequence (`null` if rows have none). `outputs` are before the link to a prediction (logits, the
logarithm of a rate, a number on -1 to 1, scores of items), `predictions` behind it.

A model is rebuilt from PyTorch's own modules, from nothing but the metadata and the names in its file:
`weighhouse.spec`, `weighhouse.inputs`, `weighhouse.target`. All tensors of the file must find their place, and every
parameter of the modules must come from the file, but for the second bias of PyTorch's LSTM, which is zero. Rows are computed
one by one, so that nothing hangs on how sequences are padded.

Prints a line for each model; exits with 1 if one differs by more than 1e-5 (of values above 1 in size: of their size).
Needs torch and safetensors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

TOLERANCE = 1e-5
# Of embeddings of categories that are not the spec's to choose.
DEFAULT_EMBEDDING_DIM = 8


def embeddings(vocabularies, dim):
    return nn.ModuleList(nn.Embedding(ids, dim) for ids in vocabularies)


class Row:
    """One row: `numbers` [numbers], `ids` [columns], and of its steps `step_numbers` [steps, numbers] and `step_ids`
    [steps, columns]."""

    def __init__(self, row, inputs):
        self.numbers = torch.tensor(row["numbers"], dtype=torch.float32)
        self.ids = torch.tensor(row["ids"], dtype=torch.long)
        steps, shape = row["steps"] or [], inputs.get("sequence") or {"numbers": 0, "vocabularies": []}
        self.steps = len(steps)
        numbers = [step["numbers"] for step in steps]
        ids = [step["ids"] for step in steps]
        self.step_numbers = torch.tensor(numbers, dtype=torch.float32).reshape(len(steps), shape["numbers"])
        self.step_ids = torch.tensor(ids, dtype=torch.long).reshape(len(steps), len(shape["vocabularies"]))


class Model(nn.Module):
    """What all models share: the shape of their rows, and the head."""

    def __init__(self, inputs, target):
        super().__init__()
        self.numbers, self.vocabularies = inputs["numbers"], inputs["vocabularies"]
        self.sequence = inputs.get("sequence")
        self.kind, self.count = next(iter(target.items())) if isinstance(target, dict) else (target, 1)
        self.ranks = self.kind == "item"

    def static_width(self, dim):
        return self.numbers + dim * len(self.vocabularies)

    def step_width(self, dim):
        return self.sequence["numbers"] + dim * len(self.sequence["vocabularies"])

    def add_embeddings(self, dim, steps=True):
        self.embeddings = embeddings(self.vocabularies, dim)
        if self.sequence and steps:
            self.step_embeddings = embeddings(self.sequence["vocabularies"], dim)

    def static(self, row):
        """Numbers and embeddings of a row, without its sequence: a list of vectors."""
        return [row.numbers] + [table(row.ids[at]) for at, table in enumerate(self.embeddings)]

    def steps(self, row):
        """Numbers and embeddings of each step, [steps, width]."""
        parts = [table(row.step_ids[:, at]) for at, table in enumerate(self.step_embeddings)]
        return torch.cat([row.step_numbers] + parts, dim=1)

    def row_vector(self, row):
        """All that a row holds, its sequence as the mean of the steps."""
        parts = self.static(row)
        if self.sequence:
            steps = self.steps(row)
            parts.append(steps.mean(0) if row.steps else torch.zeros(steps.shape[1]))
        return torch.cat(parts)

    def row_vector_width(self, dim):
        return self.static_width(dim) + (self.step_width(dim) if self.sequence else 0)

    def add_items(self, width):
        self.items = nn.Embedding(self.count, width)
        self.item_biases = nn.Embedding(self.count, 1)

    def scores(self, vector):
        """Of all items."""
        return self.items.weight @ vector + self.item_biases.weight.squeeze(1)

    def link(self, outputs):
        """From outputs to predictions."""
        if self.kind == "binary":
            return torch.sigmoid(outputs)
        if self.kind == "classes":
            return torch.softmax(outputs, 0)
        return torch.exp(outputs) if self.kind == "count" else outputs


class Wide(nn.Module):
    """A weight for each number and each category, for each output; steps count by their mean."""

    def add_wide(self, name, biased):
        if self.numbers:
            layer = nn.Linear(self.numbers, self.count, bias=biased)
            setattr(self, name, nn.ModuleList([layer]) if biased else layer)
        self.categories = embeddings(self.vocabularies, self.count)
        if self.sequence:
            if self.sequence["numbers"]:
                self.step_numbers = nn.Linear(self.sequence["numbers"], self.count, bias=False)
            self.step_categories = embeddings(self.sequence["vocabularies"], self.count)

    def wide_outputs(self, row, layer):
        total = layer(row.numbers) if self.numbers else torch.zeros(self.count)
        for at, table in enumerate(self.categories):
            total = total + table(row.ids[at])
        if row.steps:
            if self.sequence["numbers"]:
                total = total + self.step_numbers(row.step_numbers.mean(0))
            for at, table in enumerate(self.step_categories):
                total = total + table(row.step_ids[:, at]).mean(0)
        return total


class Logistic(Model, Wide):
    def __init__(self, inputs, target):
        super().__init__(inputs, target)
        self.add_wide("layers", biased=True)

    def forward(self, row):
        return self.wide_outputs(row, self.layers[0] if self.numbers else None)


def linear_layers(sizes):
    return nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in zip(sizes, sizes[1:]))


ACTIVATIONS = {
    "relu": torch.relu,
    "leaky_relu": lambda z: nn.functional.leaky_relu(z, 0.01),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def run_layers(layers, vector, activation=torch.relu):
    for layer in layers[:-1]:
        vector = activation(layer(vector))
    return layers[-1](vector)


class Mlp(Model):
    def __init__(
        self, inputs, target, hidden, dropout=0.0, activation="relu", embedding_dim=DEFAULT_EMBEDDING_DIM
    ):
        super().__init__(inputs, target)
        self.activation = ACTIVATIONS[activation]
        self.add_embeddings(embedding_dim)
        self.layers = linear_layers([self.row_vector_width(embedding_dim), *hidden, self.count])

    def forward(self, row):
        return run_layers(self.layers, self.row_vector(row), self.activation)


class WideAndDeep(Mlp, Wide):
    def __init__(self, inputs, target, hidden, embedding_dim):
        super().__init__(inputs, target, hidden, embedding_dim=embedding_dim)
        self.add_wide("wide", biased=False)

    def forward(self, row):
        return super().forward(row) + self.wide_outputs(row, getattr(self, "wide", None))


class TwoTower(Model):
    def __init__(self, inputs, target, hidden, dim, negatives):
        super().__init__(inputs, target)
        self.add_embeddings(DEFAULT_EMBEDDING_DIM)
        self.user = linear_layers([self.row_vector_width(DEFAULT_EMBEDDING_DIM), *hidden, dim])
        self.add_items(dim)

    def forward(self, row):
        return self.scores(run_layers(self.user, self.row_vector(row)))


class OfSequences(Model):
    """What is made of a sequence goes to the output beside the row's other features."""

    def add_head(self, width):
        if self.ranks:
            self.add_items(width)
        else:
            self.head = nn.Linear(width, self.count)

    def outputs(self, vector):
        return self.scores(vector) if self.ranks else self.head(vector)


class Lstm(OfSequences):
    def __init__(self, inputs, target, hidden, dropout, embedding_dim, negatives):
        super().__init__(inputs, target)
        self.add_embeddings(embedding_dim)
        sizes = [self.step_width(embedding_dim), *hidden]
        self.lstm = nn.ModuleList(nn.LSTM(inputs, units) for inputs, units in zip(sizes, hidden))
        for layer in self.lstm:
            nn.init.zeros_(layer.bias_hh_l0)
        self.add_head(hidden[-1] + self.static_width(embedding_dim))

    def forward(self, row):
        last = torch.zeros(self.lstm[-1].hidden_size)
        if row.steps:
            states = self.steps(row)
            for layer in self.lstm:
                states, _ = layer(states)
            last = states[-1]
        return self.outputs(torch.cat([last] + self.static(row)))


class Cnn(OfSequences):
    def __init__(self, inputs, target, channels, kernel, dropout, embedding_dim, negatives):
        super().__init__(inputs, target)
        self.add_embeddings(embedding_dim)
        sizes = [self.step_width(embedding_dim), *channels]
        self.conv = nn.ModuleList(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2) for inputs, outputs in zip(sizes, channels)
        )
        self.add_head(channels[-1] + self.static_width(embedding_dim))

    def forward(self, row):
        largest = torch.zeros(self.conv[-1].out_channels)
        if row.steps:
            channels = self.steps(row).T
            for layer in self.conv:
                channels = torch.relu(layer(channels))
            largest = channels.max(1).values
        return self.outputs(torch.cat([largest] + self.static(row)))


class Transformer(OfSequences):
    def __init__(self, inputs, target, layers, width, heads, feed_forward, dropout, negatives):
        super().__init__(inputs, target)
        if self.sequence["numbers"]:
            self.step_numbers = nn.Linear(self.sequence["numbers"], width)
        self.embeddings = embeddings(self.vocabularies, DEFAULT_EMBEDDING_DIM)
        self.step_embeddings = embeddings(self.sequence["vocabularies"], width)
        self.positions = nn.Embedding(self.sequence["length"], width)
        layer = nn.TransformerEncoderLayer(width, heads, feed_forward, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.width, static = width, self.static_width(DEFAULT_EMBEDDING_DIM)
        if self.ranks and static:
            self.join = nn.Linear(static + width, width)
        self.add_head(width if self.ranks else static + width)

    def forward(self, row):
        summary = torch.zeros(self.width)
        if row.steps:
            steps = self.positions(torch.arange(row.steps))
            if self.sequence["numbers"]:
                steps = steps + self.step_numbers(row.step_numbers)
            for at, table in enumerate(self.step_embeddings):
                steps = steps + table(row.step_ids[:, at])
            # Where items are ranked, a step sees only those before it.
            mask = nn.Transformer.generate_square_subsequent_mask(row.steps) if self.ranks else None
            encoded = self.encoder(steps.unsqueeze(0), mask=mask).squeeze(0)
            summary = encoded[-1] if self.ranks else encoded.mean(0)
        vector = torch.cat(self.static(row) + [summary])
        return self.outputs(self.join(vector) if hasattr(self, "join") else vector)


class MatrixFactorisation(Model):
    """The customer's factors are not in the file: they are the ridge regression of its history on the items' factors."""

    def __init__(self, inputs, target, factors, negatives, ridge):
        super().__init__(inputs, target)
        self.ridge = ridge
        if not self.ranks:
            self.count = self.vocabularies[0]
        self.add_items(factors)

    def forward(self, row):
        vectors = self.items(row.step_ids[:, 0]).double()
        if self.ranks:
            wanted = torch.ones(row.steps, dtype=torch.float64)
        else:
            wanted = (row.step_numbers[:, 0] - self.item_biases(row.step_ids[:, 0]).squeeze(1)).double()
        gram = vectors.T @ vectors + self.ridge * torch.eye(vectors.shape[1], dtype=torch.float64)
        scores = self.scores(torch.linalg.solve(gram, vectors.T @ wanted).float())
        return scores if self.ranks else scores[row.ids[0]].reshape(1)


MODELS = {
    "logistic": Logistic,
    "mlp": Mlp,
    "wide_and_deep": WideAndDeep,
    "matrix_factorisation": MatrixFactorisation,
    "two_tower": TwoTower,
    "lstm": Lstm,
    "transformer": Transformer,
    "cnn": Cnn,
}


def load(path):
    """The model in a file, and the shape of its rows."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    inputs = json.loads(metadata["weighhouse.inputs"])
    ((kind, sizes),) = json.loads(metadata["weighhouse.spec"]).items()
    model = MODELS[kind](inputs, json.loads(metadata["weighhouse.target"]), **sizes).eval()
    missing, unknown = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("bias_hh_l0")]
    if missing or unknown:
        raise SystemExit(f"{path}: not in the file {missing}, not in the model {unknown}")
    return model, inputs


def difference(expected, got):
    """The largest, of values above 1 in size in proportion to it."""
    if got.shape != expected.shape:
        raise SystemExit(f"expected shape {list(expected.shape)}, got {list(got.shape)}")
    return ((got - expected).abs() / expected.abs().clamp(min=1.0)).max().item()


@torch.no_grad()
def check(path):
    """The largest difference between PyTorch's outputs and predictions and those beside the model."""
    model, inputs = load(path)
    golden = json.loads(path.with_suffix(".json").read_text())
    outputs = torch.stack([model(Row(row, inputs)) for row in golden["rows"]])
    predictions = torch.stack([model.link(row) for row in outputs])
    pairs = [(golden["outputs"], outputs), (golden["predictions"], predictions)]
    return max(difference(torch.tensor(expected), got) for expected, got in pairs)


def main():
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER")
    paths = sorted(Path(sys.argv[1]).glob("*.safetensors"))
    if not paths:
        raise SystemExit(f"no model in {sys.argv[1]}")
    differing = 0
    for path in paths:
        largest = check(path)
        # A value that is no number agrees with nothing.
        agrees = largest <= TOLERANCE
        differing += not agrees
        print(f"{'agrees' if agrees else 'DIFFERS'}: {path.stem}, largest difference {largest:.1e}")
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()

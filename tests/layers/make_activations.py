"""Record transformers' activations at a few numbers, into activations.json. Run by hand, with transformers 5.

python tests/layers/make_activations.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from transformers.activations import ACT2FN

X = [-12.0, -6.5, -3.0, -1.25, -0.5, -1e-3, 0.0, 1e-3, 0.5, 1.25, 3.0, 6.5, 12.0]


def main() -> None:
    learned = [name for name in ACT2FN if list(ACT2FN[name].parameters())]
    x = torch.tensor(X)
    values = {name: ACT2FN[name](x).tolist() for name in ACT2FN if name not in learned}
    found = {"transformers": transformers.__version__, "x": X, "learned": learned, "values": values}
    Path(__file__).with_name("activations.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

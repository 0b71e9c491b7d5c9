"""Hidden states of a checkpoint by torch on this device: `python torch_rows.py FOLDER ROWS.npz OUT.npz`.

Runs where torch and transformers are installed, in a process of its own: torch and MLX never share one. Float32 in full
precision, float16 and bfloat16; every row alone, and all in one batch padded on the right. Knows nothing of archport.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from transformers import AutoModel


@torch.no_grad()
def main(folder: str, rows_file: str, out_file: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = np.load(rows_file)
    rows = [stored[name] for name in sorted(stored)]
    width = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    found = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        model = AutoModel.from_pretrained(folder, dtype=dtype).eval().to(device)
        for at, row in enumerate(rows):
            tokens = torch.tensor(row.astype(np.int64), device=device)[None]
            alone = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
            found[f"{name}_alone_{at}"] = alone[0].float().cpu().numpy()
        together = model(
            input_ids=torch.tensor(ids, device=device), attention_mask=torch.tensor(mask, device=device)
        ).last_hidden_state
        for at, row in enumerate(rows):
            found[f"{name}_batch_{at}"] = together[at, : len(row)].float().cpu().numpy()
    np.savez(out_file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""optimum.onnxruntime loads our bundle, in an environment of its own, and gives the same vectors."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mexma_rt import load

pytestmark = pytest.mark.peers

OPTIMUM = """
import json, sys
import numpy as np
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import AutoTokenizer
folder, file, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = ORTModelForFeatureExtraction.from_pretrained(folder, subfolder="onnx", file_name=file)
batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="np")
states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
print(json.dumps(np.asarray(states)[:, 0].tolist()))
"""


@pytest.mark.skipif(
    "MEXMA_OPTIMUM_PYTHON" not in os.environ,
    reason="optimum-onnx pins transformers<4.58, so it needs a python of its own: python -m venv V && V/bin/pip install "
    "torch==2.13.0 optimum-onnx onnxruntime 'transformers<4.58' && export MEXMA_OPTIMUM_PYTHON=V/bin/python",
)
@pytest.mark.parametrize(("file", "precision"), [("model.onnx", "fp32"), ("model_int8.onnx", "int8")])
def test_optimum_loads_the_bundle_and_gives_its_vectors(
    tiny_bundle: Path, sentences: list[tuple[str, str]], file: str, precision: str
) -> None:
    texts = [text for _, text in sentences]
    python = os.environ["MEXMA_OPTIMUM_PYTHON"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", OPTIMUM, str(tiny_bundle), file, json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.array(json.loads(done.stdout.splitlines()[-1]))
    ours = load(tiny_bundle, device="cpu", precision=precision).embed(texts)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    # int8: inputs are quantised by batch, and optimum, which pads all of them together, reads the branch for token states
    assert (theirs * ours).sum(axis=1).min() > {"fp32": 0.999999, "int8": 0.99}[precision]

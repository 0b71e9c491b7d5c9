"""Every symbol reused from mlx-lm: it answers as archport needs it, and importing it changes no process limit."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx

from archport.device.mlx_lm import reused


def test_importing_it_keeps_the_limit_of_open_files():
    script = (
        "import resource, archport\n"
        "from archport.device.mlx_lm import reused\n"
        "before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "reused('models.switch_layers.SwitchGLU')\n"
        "print(before == resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr[-500:]


WITHOUT = """
import sys
sys.modules["mlx_lm"] = sys.modules["transformers"] = None
from archport import engine
from archport.contract.errors import BackendMissing
print(len(engine.load("tests/goldens/qwen3-tied").generate("t1 t2", max_tokens=3).text) > 0)
try:
    engine.load("tests/goldens/qwen3-moe")
except BackendMissing as error:
    print(error)
"""


def test_without_it_dense_models_run_and_experts_say_what_to_install():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=root)
    runs, *said = done.stdout.splitlines()
    assert runs == "True", done.stderr[-500:]
    assert said[0].startswith("this model runs a part of mlx-lm (SwitchGLU), and mlx_lm is not installed")
    assert said[1] == "Install it with: pip install mlx-lm"


def test_switch_glu_has_the_parameter_names_of_converted_checkpoints():
    from mlx.utils import tree_flatten

    names = {name for name, _ in tree_flatten(reused("models.switch_layers.SwitchGLU")(8, 4, 3).parameters())}
    assert names == {f"{part}_proj.weight" for part in ("gate", "up", "down")}


def test_switch_mlp_has_two_matrices_and_an_activation_between_them():
    from mlx.utils import tree_flatten

    experts = reused("models.switch_layers.SwitchMLP")(8, 4, 3)
    assert {name for name, _ in tree_flatten(experts.parameters())} == {"fc1.weight", "fc2.weight"}
    experts.activation = mx.abs
    x, chosen = mx.random.normal((1, 2, 8)), mx.array([[[2], [0]]])
    first, second = experts.fc1.weight, experts.fc2.weight
    want = mx.stack([second[at] @ mx.abs(first[at] @ x[0, row]) for row, at in enumerate((2, 0))])
    assert mx.allclose(experts(x, chosen)[0, :, 0], want, atol=1e-6).item()


def test_experts_one_by_one_equal_the_grouped_product():
    from archport.contract import Experts
    from archport.layers import SparseMLP

    for shared in (0, 24):
        mlp = SparseMLP(16, Experts(5, 2, 12, (0,), shared_intermediate_size=shared), renormalise=True)
        x = mx.random.normal((2, 9, 16))
        chosen, weights = mlp.route(x)
        assert mx.allclose(weights.sum(-1), mx.ones((2, 9))).item()
        assert mx.abs(mlp._expert_by_expert(x, chosen) - mlp.switch_mlp(x, chosen)).max().item() <= 1e-6
        assert mlp(x).shape == x.shape

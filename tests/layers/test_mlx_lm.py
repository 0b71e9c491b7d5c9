"""Every symbol reused from mlx-lm: it answers as archport needs it, and importing it changes no process limit."""

import subprocess
import sys

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


def test_switch_glu_has_the_parameter_names_of_converted_checkpoints():
    from mlx.utils import tree_flatten

    names = {name for name, _ in tree_flatten(reused("models.switch_layers.SwitchGLU")(8, 4, 3).parameters())}
    assert names == {f"{part}_proj.weight" for part in ("gate", "up", "down")}


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

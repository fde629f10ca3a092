"""What is loaded late is all there when somebody asks for it."""

import subprocess
import sys


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_jax_md_loads_what_is_seldom_needed_on_first_use():
    run(
        "import sys\n"
        "from lamjax.imports import jax_md\n"
        "package = jax_md()\n"
        "assert package.minimize.fire_descent and package.simulate.nve and package is sys.modules['jax_md']\n"
        "assert 'e3nn_jax' not in sys.modules  # its neural networks\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()  # else jax.distributed came too late\n"
        "import jax_md as again\n"
        "from jax_md import energy, rigid_body\n"
        "from jax_md.elasticity import athermal_moduli\n"
        "assert again is package and energy.lennard_jones and rigid_body.RigidBody and athermal_moduli\n"
        "assert energy.nn is again.nn and 'e3nn_jax' in sys.modules\n"
    )


def test_jax_md_of_the_user_stays_as_it_is():
    run("import jax_md\nfrom lamjax import imports\nassert imports.jax_md() is jax_md\n")

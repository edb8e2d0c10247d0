"""The core imports and runs without any extra."""

import subprocess
import sys

import pytest

# Rich comes with Keras, SciPy with JAX.
BLOCKED = ["typer", "pandas", "pyarrow", "jinja2", "matplotlib", "sklearn", "keras_hub"]

PROGRAM = f'''
import sys
class Without:
    """A finder to which the blocked packages are not there."""
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            return None
        return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import keras, numpy, plait
mix = plait.Mixture([keras.layers.Dense(2), keras.layers.Dense(2)])
mix.compile("sgd", "mse")
mix.fit(numpy.ones((4, 3)), numpy.ones((4, 2)), verbose=0)
print(mix.gate_weights(numpy.ones((4, 3))).shape)
'''


@pytest.mark.slow
def test_core_runs_with_every_extra_blocked():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.stdout.strip() == "(4, 2)", result.stderr


def test_command_line_names_the_missing_extra():
    program = PROGRAM.split("import keras")[0] + "from plait.cli import main\nmain()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install plait[cli]" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_estimators_name_the_missing_extra():
    program = PROGRAM + "import plait.sklearn\n"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ImportError: plait.sklearn needs scikit-learn" in result.stderr
    assert "pip install plait[sklearn]" in result.stderr


@pytest.mark.slow
def test_the_core_does_not_import_the_estimators():
    program = "import sys, plait\nprint([name for name in sys.modules if 'plait.sklearn' in name])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr

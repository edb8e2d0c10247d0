"""The package's names, and a command line whose help does not wait for Keras."""

import os
import subprocess
import sys

import pytest

import plait


def test_public_names_resolve_and_are_listed():
    assert all(getattr(plait, name) is not None for name in plait.__all__)
    assert set(plait.__all__) <= set(dir(plait))


@pytest.mark.slow
def test_importing_plait_leaves_the_top_floor_alone():
    program = (
        "import sys, plait; print([m for m in sys.modules if "
        "m.startswith(('plait.tables', 'plait.cli', 'plait.report'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr


def test_help_imports_no_keras():
    program = "import sys, runpy\nsys.argv = ['plait', '--help']\n" + (
        "try:\n    runpy.run_module('plait.cli', run_name='__main__')\n"
        "except SystemExit:\n    print('keras' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ}
    )
    assert done.stdout.strip().splitlines()[-1] == "False False", done.stderr

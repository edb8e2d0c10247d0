"""The page on data larger than memory runs as a reader would paste it."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "large-data.md"


def test_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), PAGE.name, "exec"), {"__name__": "__main__"})

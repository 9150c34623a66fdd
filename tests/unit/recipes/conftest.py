import sys
from pathlib import Path

# The recipe is a folder of scripts, which import each other as they do when one of them is run.
sys.path.insert(0, str(Path(__file__).parents[3] / "recipes" / "tiny"))

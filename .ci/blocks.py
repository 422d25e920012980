"""Prints the fenced code blocks of one language in a Markdown page, or the n-th of them alone."""

import re
import sys
from pathlib import Path

page, language, *number = sys.argv[1:]
fenced = rf"^```{language}\n(.*?)^```$"
blocks = re.findall(fenced, Path(page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
print("\n".join([blocks[int(number[0]) - 1]] if number else blocks), end="")

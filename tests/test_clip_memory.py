"""Clips in memory: however many processes show them, there is one copy."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from children import start_child, wait_for_line

from reverie.envs.distractors.folder import FolderSource

CLIPS, FRAMES, SIZE, WORKERS = 100, 50, 64, 8
COPY = CLIPS * FRAMES * SIZE * SIZE * 3
"""Bytes of all frames."""

READER = """
import sys
from pathlib import Path
from reverie.envs.distractors.folder import FolderSource
from reverie.envs.distractors.sources import SPLITS

source = FolderSource(Path(sys.argv[1]), size=int(sys.argv[2]), cache=Path(sys.argv[3]))
clips = [source.open(split, i) for split in SPLITS for i in range(source.count(split))]
print("open", flush=True)
sys.stdin.readline()
frames = sum(int(clip.frame(i).max() > 0) for clip in clips for i in range(clip.length))
print(f"{frames} frames", flush=True)
sys.stdin.readline()
"""


def memory(children: list[subprocess.Popen[str]]) -> dict[str, int]:
    """Bytes of all children together; "Pss" has a page that n of them share n times as 1/n."""
    total = {"Pss": 0, "Private_Dirty": 0}
    for child in children:
        for line in Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in total:
                total[name] += int(rest.split()[0]) * 1024
    return total


def say(children: list[subprocess.Popen[str]], answer: str) -> None:
    """Let all go on, and wait until each has said `answer`."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        wait_for_line(child, answer)


@pytest.mark.slow
def test_a_hundred_clips_in_eight_processes_are_one_copy(tmp_path: Path) -> None:
    first = np.random.default_rng(0).integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    for number in range(CLIPS):
        split = tmp_path / "clips" / ("test" if number % 3 == 0 else "train")
        split.mkdir(parents=True, exist_ok=True)
        np.save(split / f"{number}.npy", first + np.uint8(number))
    FolderSource(tmp_path / "clips", size=SIZE, cache=tmp_path / "cache").close()
    places = (tmp_path / "clips", SIZE, tmp_path / "cache")
    children = [start_child(READER, *places) for _ in range(WORKERS)]
    try:
        for child in children:
            wait_for_line(child, "open")
        before = memory(children)
        say(children, f"{CLIPS * FRAMES} frames")
        after = memory(children)
    finally:
        for child in children:
            child.kill()
            child.communicate()
    grown = {name: (after[name] - before[name]) / COPY for name in after}
    assert 0.9 < grown["Pss"] < 1.5, f"copies of the clips in {WORKERS} processes: {grown}"
    assert grown["Private_Dirty"] < 0.1, f"copies that are a process's own: {grown}"

"""Videos of episodes, written picture by picture."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

VIDEO_SUFFIXES = (".mp4", ".gif")
# Smaller pictures (a console's have 210 lines) are enlarged by whole factors up to this height.
PLEASANT_HEIGHT = 640
CLIP_HEIGHT = 160  # about: pictures are made smaller by whole factors
CLIP_FRAMES = 200  # at most; a longer episode is shown at longer intervals


class VideoError(ValueError):
    """A video that cannot be written as asked."""


class VideoWriter:
    """An MP4 or GIF, by the file's ending, that grows with ``append``; a context manager.

    Args:
        path: folders are made.
        frames_per_second: speed of play.

    Raises:
        VideoError: another ending.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        import imageio.v2 as imageio

        if path.suffix not in VIDEO_SUFFIXES:
            raise VideoError(f"{path}: must end in {' or '.join(VIDEO_SUFFIXES)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mp4":
            # Players need even sizes, which a block of 2 guarantees; the default of 16 would rescale most pictures.
            options = {"fps": frames_per_second, "codec": "libx264", "macro_block_size": 2}
            self._writer = imageio.get_writer(path, format="FFMPEG", mode="I", **options)
        else:
            self._writer = imageio.get_writer(path, mode="I", duration=1000.0 / frames_per_second, loop=0)
        self.num_frames = 0

    def append(self, picture: np.ndarray) -> None:
        """Add an RGB picture, (height, width, 3) uint8, all of one size."""
        factor = max(1, PLEASANT_HEIGHT // picture.shape[0])
        self._writer.append_data(picture.repeat(factor, axis=0).repeat(factor, axis=1))
        self.num_frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


class Clip:
    """Clip: a small animated GIF of one episode, kept in memory.

    Args:
        frames_per_second: speed of play.
    """

    def __init__(self, frames_per_second: float) -> None:
        self.frames: list[np.ndarray] = []
        self._seconds = 1.0 / frames_per_second
        self._every = 1  # of the pictures, how many make a frame
        self._seen = 0

    def append(self, picture: np.ndarray) -> None:
        """Add an RGB picture, (height, width, 3) uint8, all of one size."""
        from PIL import Image

        if self._seen % self._every == 0:
            factor = max(1, round(picture.shape[0] / CLIP_HEIGHT))
            self.frames.append(np.asarray(Image.fromarray(picture).reduce(factor)))
            if len(self.frames) > CLIP_FRAMES:
                self.frames, self._every = self.frames[::2], 2 * self._every
        self._seen += 1

    def gif(self) -> bytes:
        """Return the file's content; it plays for ever."""
        import imageio.v3 as imageio

        milliseconds = 1000 * self._seconds * self._every
        return imageio.imwrite(
            "<bytes>", np.stack(self.frames), extension=".gif", plugin="pillow", duration=milliseconds, loop=0
        )

"""Speech as an orchestrator sends it: stand-alone MPEG-TS segments with H.264 and Opus or AAC."""

import asyncio
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.ffmpeg import find_ffmpeg
from whisper_byoc.audio.formats import SAMPLE_RATE

_VIDEO = ("-f", "lavfi", "-i", "testsrc2=size=160x120:rate=15")
_H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-pix_fmt", "yuv420p")


async def transport_segments(
    samples: NDArray[np.float32],
    seconds: float = 1.0,
    codec: str | None = "libopus",
    *,
    video: bool = True,
    first_time: float = 0.0,
) -> list[bytes]:
    """samples: float32 (n,), 16 kHz. codec: ffmpeg's name; None leaves audio out. first_time: s on
    the clock of the first segment. The clock runs on from one segment to the next."""
    audio = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    inputs: list[str] = []
    outputs: list[str] = []
    if video:
        inputs += _VIDEO
        outputs += ["-map", "0:v", *_H264, "-g", "15", "-force_key_frames"]
        outputs += [f"expr:gte(t,n_forced*{seconds})"]
    if codec is not None:
        inputs += ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", "pipe:0"]
        outputs += ["-map", f"{int(video)}:a", "-c:a", codec, "-b:a", "64k", "-ar", "48000"]
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            find_ffmpeg(),
            *("-hide_banner", "-loglevel", "error", *inputs, *outputs),
            *("-t", str(len(samples) / SAMPLE_RATE), "-output_ts_offset", str(first_time)),
            *("-muxdelay", "0", "-muxpreload", "0"),
            *("-f", "segment", "-segment_format", "mpegts", "-segment_time", str(seconds)),
            *("-segment_start_number", "0", str(Path(folder) / "%05d.ts")),
            stdin=asyncio.subprocess.PIPE,
        )
        await process.communicate(audio)
        assert process.returncode == 0
        return _read_all(Path(folder))


def _read_all(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]
